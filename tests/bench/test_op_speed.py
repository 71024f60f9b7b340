"""The comparisons of the ops: who takes part, and that a wrong answer is found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import openxlstm.ops
from openxlstm.bench import op_speed, peers
from openxlstm.bench.comparison import Comparison, run_comparison
from openxlstm.bench.peers import Absent

SMALL: dict[str, Callable[[], Comparison]] = {
    "mlstm": lambda: op_speed.mlstm_comparison(2, 2, 9, 8),
    "slstm": lambda: op_speed.slstm_comparison(2, 9, 2, 8),
}


@pytest.fixture(autouse=True)
def _without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find", lambda *_: Absent("not installed"))


@pytest.mark.parametrize("op", SMALL)
def test_ours_agrees_with_the_reference(op: str) -> None:
    comparison = SMALL[op]()
    verdict = comparison.check()
    assert verdict.right
    assert verdict.words.endswith("of openxlstm.reference")
    assert verdict.error is not None
    assert 0 < verdict.error < 1e-5
    ours = [entry for entry in comparison.entries if entry.ours]
    assert [entry.beside for entry in ours] == [None] + [ours[0].name] * (len(ours) - 1)
    assert ours[-1].name == "openxlstm torch", "plain PyTorch runs everywhere"
    assert "openxlstm reference" not in comparison.repetitions, "slow"
    for entry in comparison.entries:
        assert (entry.name in comparison.repetitions) == (entry.absent is None)
        assert (entry.work is not None) == entry.ours
        assert entry.ours or entry.beside == ours[0].name
    for repetition in comparison.repetitions.values():
        repetition()


def wrong_output(h: Tensor) -> Tensor:
    return h * 1.001


def wrong_gradient(h: Tensor) -> Tensor:
    return h + 0.001 * (h - h.detach())


def not_finite(h: Tensor) -> Tensor:
    return h / 0


@pytest.mark.parametrize("mistake", [wrong_output, wrong_gradient, not_finite])
@pytest.mark.parametrize("op", SMALL)
def test_a_wrong_answer_is_not_timed(
    op: str, mistake: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    right: Callable[..., Any] = getattr(openxlstm.ops, op)

    def wrong(*inputs: Any, backend: str) -> Any:
        h, state = right(*inputs, backend=backend)
        return (mistake(h) if backend == "torch" else h), state

    monkeypatch.setattr(openxlstm.ops, op, wrong)
    outcome = run_comparison(SMALL[op](), budget=10)
    assert not outcome.verdict.right
    assert outcome.verdict.words.startswith("differs from openxlstm.reference: torch by ")
    assert [entry.timing for entry in outcome.entries] == [None] * len(outcome.entries)


def test_every_shape_has_its_contest() -> None:
    assert len(op_speed.comparisons(quick=False)) == len(op_speed.MLSTM_SHAPES) + len(
        op_speed.SLSTM_SHAPES
    )
    quick = op_speed.comparisons(quick=True)
    assert [title for title, _ in quick] == ["mlstm (16, 4, 256, 64)", "slstm (16, 256, 4, 32)"]


def test_each_title_builds_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_speed, "MLSTM_SHAPES", ((1, 2, 3, 4), (1, 2, 5, 4)))
    monkeypatch.setattr(op_speed, "SLSTM_SHAPES", ((1, 3, 2, 4), (1, 5, 2, 4)))
    built = [(title, build()) for title, build in op_speed.comparisons(quick=False)]
    assert [comparison.sizes["T"] for _, comparison in built] == [3, 5, 3, 5]
    for title, comparison in built:
        assert title.startswith(comparison.name)
        assert str(comparison.sizes["T"]) in title


def test_a_peer_here_is_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it says is what counts: a peer that is different makes ours wrong."""

    def zeros(*_: object) -> Any:
        return lambda: [torch.zeros(2, 9, 2, 8)]

    monkeypatch.setattr(peers, "find", zeros)
    verdict = op_speed.slstm_comparison(2, 9, 2, 8).check()
    assert not verdict.right
    assert verdict.words.startswith("differs from NX-AI cell: ")
