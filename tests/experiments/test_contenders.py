"""Contenders read alike; the Transformer's cache changes nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from openxlstm.experiments import long_memory, recall, state_tracking, throughput
from openxlstm.experiments.contenders import LSTMBody, Reader, StackBody
from openxlstm.experiments.transformer import Transformer, rotate, rotations

BODIES: dict[str, Callable[[], nn.Module]] = {
    "slstm": lambda: StackBody(embedding_dim=16, layers="ss", num_heads=2),
    "mlstm": lambda: StackBody(embedding_dim=16, layers="mm", num_heads=2),
    "lstm": lambda: LSTMBody(16, 2),
    "transformer": lambda: Transformer(16, 2, 2),
}


@pytest.mark.parametrize("name", BODIES)
def test_nobody_looks_ahead(name: str) -> None:
    body = BODIES[name]()
    x = torch.randn(2, 9, 16)
    changed = x.clone()
    changed[:, 5:] = torch.randn(2, 4, 16)
    before, after = body(x), body(changed)
    assert before.shape == x.shape
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize("tied", [False, True])
def test_a_reader_answers_where_it_is_asked(tied: bool) -> None:
    answers = 7 if tied else 3
    model = Reader(7, answers, 16, LSTMBody(16, 1), tied=tied)
    ids = torch.randint(7, (2, 5))
    asked = torch.rand(2, 5) < 0.5
    everywhere = model(ids, torch.ones(2, 5, dtype=torch.bool)).view(2, 5, answers)
    torch.testing.assert_close(model(ids, asked), everywhere[asked])
    assert (model.head.weight is model.embedding.weight) == tied


def test_the_transformer_with_a_cache() -> None:
    body = Transformer(16, 2, 2)
    x = torch.randn(3, 12, 16)
    whole = body(x)
    caches = body.empty_caches(3, 12)
    steps = [body(x[:, :7], caches)] + [body(x[:, t : t + 1], caches) for t in range(7, 12)]
    torch.testing.assert_close(torch.cat(steps, 1), whole)
    assert [cache.length for cache in caches] == [12, 12]


def test_rotations_know_distances_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8)
    near = rotate(q, rotations(5, 1, 8)) * rotate(k, rotations(3, 1, 8))
    far = rotate(q, rotations(105, 1, 8)) * rotate(k, rotations(103, 1, 8))
    torch.testing.assert_close(near.sum(), far.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("module", [state_tracking, recall, long_memory])
def test_widths_are_the_same(module: object) -> None:
    for about, learning_rate, make_body in module.BODIES.values():  # pyright: ignore
        x = torch.randn(1, 4, module.WIDTH)  # pyright: ignore
        assert make_body()(x).shape == x.shape
        assert "block" in about or "layer" in about
        assert 1e-4 < learning_rate < 1e-1


@pytest.mark.parametrize("contender", throughput.ABOUT)
def test_generation_goes_on_where_the_context_ended(contender: str) -> None:
    """One step after a context gives the logits of reading both, any number of times."""
    model = throughput.make_model(contender)
    ids = torch.randint(throughput.VOCAB_SIZE, (1, 21))
    with torch.no_grad():
        if isinstance(model, Reader):
            expected = model(ids, torch.ones(ids.shape, dtype=torch.bool))[-1:]
        else:
            expected = model(ids)[0][:, -1]
        make_step = throughput.after_context(model, ids[:, :20], 21)
        for _ in range(2):
            found = make_step()(ids[:, 20])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_the_native_backend_a_step_is_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openxlstm.ops.native.backend.missing", lambda: "not wanted here")
    test_generation_goes_on_where_the_context_ended("mLSTM")
