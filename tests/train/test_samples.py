"""What a model writes while it learns, also in a run that was killed and resumed."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from train_cases import TOKENS, make_config, make_model

from openxlstm.lm.model import LanguageModel
from openxlstm.train.callback import Evaluated, Progress
from openxlstm.train.evaluate import Evaluation
from openxlstm.train.loop import fit
from openxlstm.train.samples import Samples


def evaluated(step: int, model: LanguageModel, val: float = 2.0) -> Evaluated:
    loss = Evaluation(loss=val, tokens=5)
    return Evaluated(
        step=step, tokens=10 * step, seconds=1.0 * step, train=loss, val=loss, best=False,
        model=model,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return make_model(dropout=0.5)


def write(
    folder: Path, model: LanguageModel, steps: list[int], text: str, begin: int = 0, **options: Any
) -> str:
    with Samples(folder, lambda _: text, **options) as samples:
        samples.on_start(Progress(step=begin, seconds=1.0 * begin))
        for step in steps:
            samples.on_evaluated(evaluated(step, model, val=1.23456))
    return (folder / "samples.txt").read_text()


def test_what_is_kept(tmp_path: Path, model: LanguageModel) -> None:
    told = []
    text = write(
        tmp_path, model, [0, 1000, 2000], "KING:\n\nNo.", listeners=[lambda *a: told.append(a)]
    )
    assert text == (
        "step 1,000, val loss 1.2346\n    KING:\n    \n    No.\n\n"
        "step 2,000, val loss 1.2346\n    KING:\n    \n    No.\n\n"
    )
    assert told == [(1000, "KING:\n\nNo."), (2000, "KING:\n\nNo.")]


def test_not_at_every_evaluation(tmp_path: Path, model: LanguageModel) -> None:
    text = write(tmp_path, model, [0, 3, 6, 9, 10, 12], "a", every=6)
    assert [line.split(",")[0] for line in text.splitlines() if line.startswith("step")] == [
        "step 6", "step 12"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["a", "", "\n", "step 9, val loss 1.0\n\nx\n\n", "\r\x85\u2028é"])
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5])
def test_a_resumed_run_drops_what_came_after_its_checkpoint(
    tmp_path: Path, model: LanguageModel, text: str, at: int
) -> None:
    whole = write(tmp_path / "whole", model, [1, 2, 3, 4], text)
    write(tmp_path / "cut", model, [1, 2, 3], text)
    again = list(range(min(at, 3) + 1, 5))
    assert write(tmp_path / "cut", model, again, text, begin=at) == whole


def test_a_last_sample_that_was_cut_is_dropped(tmp_path: Path, model: LanguageModel) -> None:
    write(tmp_path, model, [1, 2], "é\nb")
    path = tmp_path / "samples.txt"
    whole = path.read_bytes()
    first = len(whole) // 2
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        assert write(tmp_path, model, [], "", begin=2).encode() == whole[:first]


def test_it_is_asked_in_evaluation_mode_and_leaves_the_rest_alone(
    tmp_path: Path, model: LanguageModel
) -> None:
    def ask(asked: LanguageModel) -> str:
        assert asked is model
        assert not any(module.training for module in asked.modules())
        torch.rand(3)  # whoever draws without a generator of their own
        return "a"

    model.train()
    before = torch.get_rng_state()
    with Samples(tmp_path, ask) as samples:
        samples.on_start(Progress())
        samples.on_evaluated(evaluated(5, model))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in model.modules())


class Repeated:
    """The same batch without end."""

    def __init__(self, ids: Tensor) -> None:
        self._batch = SimpleNamespace(x=ids[:, :-1], y=ids[:, 1:], reset=None)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._batch

    def advance(self, share: float) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def test_a_run_learns_the_same_with_samples(tmp_path: Path) -> None:
    weights = []
    for name in ("with", "without"):
        model = make_model(dropout=0.5)
        samples = Samples(tmp_path, lambda model: str(model(torch.zeros(1, 1).long())[0].max()))
        batches = Repeated(TOKENS[:24].view(2, 12))
        callbacks = [samples] if name == "with" else []
        sample = [next(batches)]
        with samples:
            fit(model, batches, make_config(), callbacks, train_sample=sample, val_sample=sample)
        weights.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))
    assert (tmp_path / "samples.txt").read_text().count("step") == 3
