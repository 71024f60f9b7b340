"""The comparisons of whole models: training steps and generation."""

import math

import pytest
import torch
from torch import nn

from openxlstm.bench import generation_speed, peers, training_speed
from openxlstm.bench.comparison import run_comparison
from openxlstm.bench.peers import Absent


@pytest.fixture(autouse=True)
def _small_and_without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find", lambda *_: Absent("not installed"))
    for name, size in (("B", 2), ("T", 8), ("LSTM_WIDTH", 16)):
        monkeypatch.setattr(training_speed, name, size)
    monkeypatch.setattr(generation_speed, "TOKENS", 8)
    monkeypatch.setattr(generation_speed, "WIDE", 64)


def test_training() -> None:
    comparison = training_speed.training()
    verdict = comparison.check()
    assert verdict.right, verdict.words
    assert comparison.tokens == 16
    beside = {entry.name: entry.beside for entry in comparison.entries}
    assert beside == {
        "openxlstm mmmm": None,
        "NX-AI mmmm": "openxlstm mmmm",
        "openxlstm ssss": None,
        "NX-AI ssss": "openxlstm ssss",
        "nn.LSTM 3 × 16": "openxlstm ssss",
        "openxlstm msmm": None,
        "NX-AI msmm": "openxlstm msmm",
        "openxlstm 4 × large": None,
        "Hugging Face 4 × large": "openxlstm 4 × large",
    }
    ours = [entry for entry in comparison.entries if entry.ours]
    assert [entry.parameters for entry in ours] == [454_560, 448_896, 453_144, 874_400]
    assert set(comparison.repetitions) == {entry.name for entry in ours} | {"nn.LSTM 3 × 16"}


def test_a_step_learns() -> None:
    """The batch is fixed, so that it is learnt by heart."""
    torch.manual_seed(0)
    step = training_speed.training_step(training_speed.LSTMModel())
    losses = [step() for _ in range(30)]
    assert losses[-1] < losses[0] - 0.1


def test_a_loss_that_is_not_finite_stops_the_contest() -> None:
    models: dict[str, nn.Module | Absent] = {}
    for layers in training_speed.STACKS:
        models[f"openxlstm {layers}"] = nn.Linear(2, 3)
        models[f"NX-AI {layers}"] = nn.Linear(2, 3)
    models[training_speed.LARGE] = models[training_speed.HUGGING_FACE] = nn.Linear(2, 3)
    assert training_speed.check_losses(models, {"A": 1.0}).right
    verdict = training_speed.check_losses(models, {"A": 1.0, "B": math.nan})
    assert (verdict.right, verdict.words) == (False, "B: loss nan")
    models["NX-AI ssss"] = nn.Linear(2, 4)
    verdict = training_speed.check_losses(models, {"A": 1.0})
    assert (verdict.right, verdict.words) == (
        False,
        "openxlstm ssss: 9 parameters, 12 in NX-AI ssss",
    )
    models["NX-AI ssss"] = Absent("not installed")
    assert training_speed.check_losses(models, {"A": 1.0}).right


def test_generation() -> None:
    comparison = generation_speed.generation()
    verdict = comparison.check()
    assert verdict.right, verdict.words
    ours = [entry for entry in comparison.entries if entry.ours]
    assert [entry.name for entry in ours][-2:] == ["openxlstm 4 × large", "openxlstm 8 × m"]
    assert set(comparison.repetitions) == {entry.name for entry in ours}
    theirs = [entry for entry in comparison.entries if not entry.ours]
    assert [entry.beside for entry in theirs] == [entry.name for entry in ours[:-1]]
    work = ours[0].work
    assert work is not None
    assert work.flops % 8 == 0
    for repetition in comparison.repetitions.values():
        tokens = repetition()
        assert isinstance(tokens, list)
        assert len(tokens) == 8


def test_the_large_models_are_of_one_size() -> None:
    """About 12.9 million parameters; Hugging Face's are counted by the class in its package."""
    with torch.device("meta"):
        large = training_speed.large_model(512)
        paper = training_speed.openxlstm_model(generation_speed.WIDE_LAYERS, 512)
    assert training_speed.size(large) == 12_934_688
    assert training_speed.size(paper) == pytest.approx(12_934_688, rel=0.01)


def test_tokens_that_the_model_would_not_say() -> None:
    model = training_speed.openxlstm_model("ms").eval()
    tokens = generation_speed.openxlstm_generate(model, 12)
    assert generation_speed.shortfall(model, tokens) <= generation_speed.ROUNDING
    for place in (0, 5, 11):
        wrong = list(tokens)
        wrong[place] = (wrong[place] + 1) % training_speed.VOCAB
        assert generation_speed.shortfall(model, wrong) > generation_speed.ROUNDING, place


def test_wrong_tokens_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def lazy(model: object, num_tokens: int) -> list[int]:
        return [3] * num_tokens

    monkeypatch.setattr(generation_speed, "openxlstm_generate", lazy)
    outcome = run_comparison(generation_speed.generation(), budget=10)
    assert "openxlstm mmmm: not the likeliest tokens" in outcome.verdict.words
    assert {entry.timing for entry in outcome.entries} == {None}


def test_a_peer_that_stops_early_is_not_timed() -> None:
    verdict = generation_speed.check_tokens({"NX-AI mmmm": (nn.Linear(1, 1), lambda: [1, 2, 3])})
    assert (verdict.right, verdict.words) == (False, "NX-AI mmmm: 3 tokens")
