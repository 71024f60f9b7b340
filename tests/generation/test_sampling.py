"""Tokens follow the distribution that the options describe, and the seed alone."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.generation.sampling import Sampling, draw, row_generators, sample

INF = math.inf


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(logits: Tensor, num: int = 40_000, **options: Any) -> Tensor:
    """How often each token is picked: logits (vocab,) → (vocab,)."""
    ids = sample(logits.expand(num, -1), generator=seeded(), **options)
    assert ids.shape == (num,)
    assert ids.dtype == torch.int64
    return torch.bincount(ids, minlength=len(logits)) / num


def chi_square(found: Tensor, expected: Tensor, num: int = 40_000) -> float:
    possible = expected > 0
    assert not found[~possible].any()
    return float((num * (found - expected)[possible] ** 2 / expected[possible]).sum())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_frequencies_follow_softmax(temperature: float):
    logits = torch.randn(20, generator=seeded(1))
    found = frequencies(logits, temperature=temperature)
    # 19 degrees of freedom: 43.8 is passed once in a thousand seeds.
    assert chi_square(found, (logits.double() / temperature).softmax(-1)) < 43.8


def test_frequencies_follow_filtered_softmax():
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()
    found = frequencies(logits, top_k=3, top_p=0.8)  # of 50:30:15, two reach 0.8
    assert chi_square(found, torch.tensor([0, 5 / 8, 0, 3 / 8])) < 10.8


def test_top_p_measures_what_top_k_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert frequencies(logits, top_p=0.55).count_nonzero() == 2  # 0.4 is short of it
    assert frequencies(logits, top_p=0.55, top_k=2).count_nonzero() == 1  # 4/7 is not


def test_temperature_comes_before_top_p():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert frequencies(logits, top_p=0.65, temperature=0.2).count_nonzero() == 1
    assert frequencies(logits, top_p=0.65, temperature=1.0).count_nonzero() == 2
    assert frequencies(logits, top_p=0.65, temperature=5.0).count_nonzero() == 3


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0], [5.0, 1.0, 5.0, 5.0]])
    assert sample(logits, temperature=0).tolist() == [1, 0]
    assert sample(logits, temperature=0, top_k=3, top_p=0.5).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6])
def test_tiny_temperature_is_greedy_and_does_not_overflow(temperature: float):
    logits = torch.tensor([[-30000.0, 100.0, 99.0]])
    assert sample(logits, temperature=temperature).item() == 1


@given(
    logits=st.lists(st.integers(-8, 8), min_size=1, max_size=30),  # few values: many ties
    top_k=st.integers(1, 40),
)
def test_top_k_keeps_exactly_the_k_likeliest(logits: list[int], top_k: int):
    kept = support(torch.tensor(logits, dtype=torch.float), Sampling(temperature=9, top_k=top_k))
    assert len(kept) == min(top_k, len(logits))
    assert sorted(logits[i] for i in kept) == sorted(logits)[-top_k:]


@given(
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    top_p=st.floats(0.0, 1.0, exclude_min=True),
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(weights: list[int], top_p: float):
    probabilities = torch.tensor(weights).double() / sum(weights)
    kept = support(probabilities.log(), Sampling(top_p=top_p))
    inside = probabilities[sorted(kept)]
    outside = probabilities[[i for i in range(len(weights)) if i not in kept]]
    assert len(kept) > 0
    assert inside.sum() >= top_p - 1e-6
    assert inside.sum() - inside.min() < top_p + 1e-6
    assert outside.numel() == 0 or outside.max() <= inside.min()


def support(logits: Tensor, sampling: Sampling) -> set[int]:
    """The tokens that can be picked: what an even walk of the uniform numbers meets."""
    num = 4096
    walk = (torch.arange(num).double() / num).unsqueeze(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openxlstm.generation.sampling.uniform", lambda *_: walk)
        return set(draw(logits.expand(num, -1), sampling).tolist())


def test_ruled_out_tokens_are_never_picked():
    logits = torch.full((65,), -INF)
    logits[[0, 7, 64]] = torch.tensor([-1e4, -1e4, -1e4])
    for options in ({}, {"top_k": 10}, {"top_p": 1.0}, {"top_k": 10, "top_p": 1.0}):
        found = frequencies(logits, num=3000, **options)
        assert found.nonzero().flatten().tolist() == [0, 7, 64]


def test_ends_of_the_uniform_numbers_pick_possible_tokens(monkeypatch: pytest.MonkeyPatch):
    ends = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64)
    monkeypatch.setattr("openxlstm.generation.sampling.uniform", lambda *_: ends)
    logits = torch.tensor([[-INF, 0.3, 0.1, 0.7, -INF]]).expand(2, -1)
    assert sample(logits).tolist() == [1, 3]
    assert sample(logits, top_k=2).tolist() == [3, 1]
    assert sample(logits, top_p=1.0).tolist() == [3, 2]


def test_seed_decides():
    logits = torch.randn(6, 50)
    first, again, other = (sample(logits, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rows_have_their_own_randomness():
    logits = torch.randn(5, 50)
    together = draw(logits, Sampling(), row_generators(7, 5))
    alone = [draw(logits[[row]], Sampling(), [row_generators(7, 5)[row]]) for row in range(5)]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together[0] == sample(logits[[0]], generator=seeded(7))


@pytest.mark.parametrize("seed", [0, -1, 2**63, 10**30])
def test_row_generators_take_any_seed_and_differ(seed: int):
    first, again = row_generators(seed, 100), row_generators(seed, 3)
    numbers = [torch.rand(1, generator=own).item() for own in first]
    assert len(set(numbers)) == 100
    assert [torch.rand(1, generator=own).item() for own in again] == numbers[:3]


def test_no_seed_differs_every_time():
    assert row_generators(None, 1)[0].initial_seed() != row_generators(None, 1)[0].initial_seed()


def test_low_precision_gradients_and_strides_are_fine():
    logits = torch.randn(30, 4, dtype=torch.bfloat16, requires_grad=True).T
    same = sample(logits.float(), temperature=0.9, top_p=0.9, generator=seeded())
    assert torch.equal(sample(logits, temperature=0.9, top_p=0.9, generator=seeded()), same)


def test_vocab_size_leaves_out_the_padding():
    logits = torch.tensor([0.0, 0.0, 9.0, 9.0]).expand(500, -1)
    for sampling in (Sampling(vocab_size=2), Sampling(vocab_size=2, temperature=0)):
        assert draw(logits, sampling, seeded()).max() < 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("row", [[0.0, math.nan], [0.0, INF], [-INF, -INF]])
@pytest.mark.parametrize("top_p", [None, 0.5])
def test_broken_logits_are_an_error(temperature: float, row: list[float], top_p: float | None):
    with pytest.raises(UserError, match="not finite"):
        sample(torch.tensor([[1.0, 2.0], row]), temperature=temperature, top_p=top_p)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", value) for value in (-0.1, math.nan, INF)]
    + [("top_k", value) for value in (0, -3)]
    + [("top_p", value) for value in (0.0, 1.1, -1.0, math.nan)]
    + [("vocab_size", 0)],
)
def test_senseless_options_are_an_error(name: str, value: float):
    with pytest.raises(UserError, match=f"{name}={value}"):
        Sampling(**{name: value})  # pyright: ignore[reportArgumentType]


def test_sample_checks_its_options():
    with pytest.raises(UserError, match="top_k=0"):
        sample(torch.zeros(1, 3), top_k=0)
