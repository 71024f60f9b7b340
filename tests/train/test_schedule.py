"""The learning rate, point by point."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.config import TrainConfig
from openxlstm.lm.presets import get_preset
from openxlstm.train.schedule import learning_rate

HIGH, LOW = 1.0, 0.1
CONFIG = TrainConfig(steps=100, learning_rate=HIGH, min_learning_rate=LOW, warmup=0.2)


def rates(config: TrainConfig, steps: int = 100) -> list[float]:
    return [learning_rate(config, step, step / steps) for step in range(steps + 1)]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warmup_rises_in_a_line(schedule: str) -> None:
    config = TrainConfig.from_dict({**CONFIG.to_dict(), "schedule": schedule})
    assert rates(config)[1:21] == pytest.approx([n / 20 for n in range(1, 21)])


def test_the_first_step_learns_something() -> None:
    """By the clock it is at progress 0, where the line starts."""
    assert learning_rate(CONFIG, 0, 0.0) == pytest.approx(0.01 * HIGH)
    assert learning_rate(CONFIG, 1, 1e-9) == pytest.approx(0.01 * HIGH)


def test_linear_falls_to_the_lowest_rate() -> None:
    expected = [HIGH - (HIGH - LOW) * n / 80 for n in range(81)]
    assert rates(CONFIG)[20:] == pytest.approx(expected)
    assert learning_rate(CONFIG, 130, 1.3) == pytest.approx(LOW)


def test_cosine_falls_to_the_lowest_rate() -> None:
    expected = [LOW + (HIGH - LOW) * (1 + math.cos(math.pi * n / 80)) / 2 for n in range(81)]
    assert rates(replace(CONFIG, schedule="cosine"))[20:] == pytest.approx(expected)


def test_constant_stays() -> None:
    assert set(rates(replace(CONFIG, schedule="constant"))[20:]) == {HIGH}


def test_no_warmup_starts_at_the_top() -> None:
    for schedule in ("linear", "cosine", "constant"):
        config = TrainConfig.from_dict({**CONFIG.to_dict(), "schedule": schedule, "warmup": 0.0})
        assert learning_rate(config, 0, 0.0) == HIGH


def test_linear_decay_in_steps_ends_and_stays() -> None:
    config = replace(CONFIG, warmup=0.0, decay_steps=10)
    expected = [HIGH - (HIGH - LOW) * n / 10 for n in range(10)] + [LOW] * 11
    assert rates(config)[:21] == pytest.approx(expected)


def test_the_articles_cosine_is_torchs() -> None:
    """Stepped after every step, which the article never did: down in 300 steps, up again, and so
    on to the end of the run."""
    config = get_preset("article").train
    assert config.steps == 3333
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    optimizer = torch.optim.AdamW([parameter], lr=config.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, T_max=300, eta_min=config.min_learning_rate
    )
    theirs, ours = [], []
    for step in range(config.steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        ours.append(learning_rate(config, step, step / config.steps))
        optimizer.step()
        scheduler.step()
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours[0] == ours[600] == 3e-4
    assert ours[300] == pytest.approx(1e-5)
    assert ours[450] == pytest.approx((3e-4 + 1e-5) / 2), "halfway up again"


@given(
    schedule=st.sampled_from(["linear", "cosine", "constant"]),
    warmup=st.floats(0, 0.99),
    low=st.floats(0, 1),
    progress=st.floats(0, 1),
    step=st.integers(0, 10**6),
    decay_steps=st.none() | st.integers(1, 10**5),
)
def test_every_rate_is_positive_and_at_most_the_highest(
    schedule: str, warmup: float, low: float, progress: float, step: int, decay_steps: int | None
) -> None:
    config = TrainConfig.from_dict(
        {
            "steps": 1, "learning_rate": 1.0, "min_learning_rate": low, "schedule": schedule,
            "warmup": warmup, "decay_steps": decay_steps,
        }
    )  # fmt: skip
    rate = learning_rate(config, step, progress)
    assert -1e-12 <= rate <= 1
    if progress >= warmup:
        assert rate >= low - 1e-12
