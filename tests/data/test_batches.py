"""Batches: what is in them, that nothing is left out, and that a break changes nothing."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from time import perf_counter

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from openxlstm.data.batches import Batch, RandomWindows, Streams, windows_in_order
from openxlstm.errors import UserError

sizes = st.integers(1, 9)
DTYPES = [torch.uint8, torch.int16, torch.int32, torch.int64]
KINDS = [RandomWindows, Streams]


def identical(one: Batch, other: Batch) -> bool:
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(one, other, strict=True)
    )


class TestBoth:
    """What random windows and streams have in common."""

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_target_is_the_next_token(
        self, kind: type[RandomWindows | Streams], dtype: torch.dtype
    ):
        tokens = torch.arange(100).to(dtype)
        for x, y, _ in islice(kind(tokens, 3, 7), 50):
            assert x.dtype == y.dtype == torch.int64
            assert x.shape == y.shape == (3, 7)
            assert torch.equal(y, x + 1)
            assert x.is_contiguous()
            assert y.is_contiguous()

    @pytest.mark.parametrize("kind", KINDS)
    @given(length=st.integers(2, 60), batch_size=sizes, window=sizes, before=sizes, after=sizes)
    def test_a_break_changes_nothing(
        self,
        kind: type[RandomWindows | Streams],
        length: int,
        batch_size: int,
        window: int,
        before: int,
        after: int,
    ):
        assume(length > window)
        tokens = torch.arange(length)
        whole = kind(tokens, batch_size, window)
        uninterrupted = list(islice(whole, before + after))
        first = kind(tokens, batch_size, window)
        list(islice(first, before))
        state = json.loads(json.dumps(first.state_dict()))
        second = kind(tokens, batch_size, window)
        next(second)
        second.load_state_dict(state)
        for expected, batch in zip(uninterrupted[before:], second, strict=False):
            assert identical(expected, batch)
        assert second.state_dict() != state

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_is_not_the_text(self, kind: type[RandomWindows | Streams]):
        tokens = torch.arange(50)
        batch = next(kind(tokens, 2, 5))
        batch.x.zero_()
        batch.y.zero_()
        assert torch.equal(tokens, torch.arange(50))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_window_grows(self, kind: type[RandomWindows | Streams]):
        """Each of 4, 8, 16 and 20 tokens for a quarter of the run."""
        batches = kind(torch.arange(100), 4, 20, first_window=4)
        shapes = []
        for share in (0.0, 0.24, 0.25, 0.5, 0.74, 0.75, 0.99, 1.0):
            batches.advance(share)
            x, y, _ = next(batches)
            assert torch.equal(y, x + 1)
            shapes.append(tuple(x.shape))
        rows = (20, 10, 5, 4) if kind is RandomWindows else (4, 4, 4, 4)
        sizes = list(zip(rows, (4, 8, 16, 20), strict=True))
        assert shapes == [sizes[i] for i in (0, 0, 1, 2, 2, 3, 3, 3)]

    @pytest.mark.parametrize("kind", KINDS)
    def test_short_text(self, kind: type[RandomWindows | Streams]):
        with pytest.raises(UserError) as caught:
            kind(torch.arange(50), 2, 64)
        assert str(caught.value) == (
            "the training part has 50 tokens, but a window of 64 needs 65: "
            "give more text or a smaller --window"
        )
        with pytest.raises(UserError, match="the held-out part has 7 tokens"):
            kind(torch.arange(7), 1, 7, part="the held-out part")
        next(kind(torch.arange(8), 1, 7))

    @pytest.mark.parametrize("make", [*KINDS, lambda t, b, w: windows_in_order(t, w, b)])
    @pytest.mark.parametrize(
        ("tokens", "batch_size", "window", "reason"),
        [
            (torch.rand(50), 2, 5, "whole numbers, not torch.float32"),
            (torch.ones(50, dtype=torch.bool), 2, 5, "whole numbers, not torch.bool"),
            (torch.arange(50)[None], 2, 5, "one row of whole numbers"),
            (torch.arange(50), 0, 5, "batch_size must be positive, not 0"),
            (torch.arange(50), 2, 0, "window must be positive, not 0"),
        ],
    )
    def test_nonsense(
        self,
        make: Callable[[Tensor, int, int], Iterator[Batch]],
        tokens: Tensor,
        batch_size: int,
        window: int,
        reason: str,
    ):
        with pytest.raises(UserError, match=reason):
            make(tokens, batch_size, window)

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_fast(self, kind: type[RandomWindows | Streams]):
        batches = kind(torch.zeros(1_000_000, dtype=torch.uint8), 12, 64)
        seconds = []
        for _ in range(10):
            start = perf_counter()
            list(islice(batches, 100))
            seconds.append((perf_counter() - start) / 100)
        assert min(seconds) < 200e-6  # 30 to 70 µs are usual


class TestRandomWindows:
    @given(st.integers(2, 12), sizes)
    def test_every_place_comes_up(self, length: int, window: int):
        assume(length > window)
        batches = RandomWindows(torch.arange(length), 100, window)
        starts = torch.cat([batch.x[:, 0] for batch in islice(batches, 10)])
        assert starts.unique().tolist() == list(range(length - window))
        last = max(int(batch.y.max()) for batch in islice(batches, 10))
        assert last == length - 1

    def test_places_are_even(self):
        batches = RandomWindows(torch.arange(11), 1000, 1)
        counts = torch.cat([batch.x[:, 0] for batch in islice(batches, 10)]).bincount(minlength=10)
        assert counts.min() > 880  # 1000 each, with a standard deviation of 30
        assert counts.max() < 1120

    def test_seeds_differ(self):
        tokens = torch.arange(10**6)
        seen = set()
        for seed in (0, 1, 2, -1, 2**32, 2**63, 2**64 - 2):
            for batch in islice(RandomWindows(tokens, 4, 2, seed), 50):
                seen.add(tuple(batch.x[:, 0].tolist()))
        assert len(seen) == 7 * 50

    def test_seed_is_all_that_counts(self):
        tokens = torch.arange(1000)
        one = list(islice(RandomWindows(tokens, 4, 2, seed=3), 5))
        torch.manual_seed(123)
        before = torch.get_rng_state()
        two = list(islice(RandomWindows(tokens, 4, 2, seed=3), 5))
        assert all(map(identical, one, two))
        assert torch.equal(before, torch.get_rng_state())

    def test_state_brings_its_seed(self):
        tokens = torch.arange(1000)
        batches = RandomWindows(tokens, 4, 2, seed=3)
        next(batches)
        other = RandomWindows(tokens, 4, 2, seed=4)
        other.load_state_dict(batches.state_dict())
        assert identical(next(batches), next(other))


class TestStreams:
    @given(st.integers(2, 200), sizes, sizes)
    def test_rows_read_on_round_the_text(self, length: int, batch_size: int, window: int):
        """A lap has every token but the last one as an input, and every one but the first as a
        target, and the memory is empty where it begins."""
        assume(length > window)
        tokens = torch.arange(length)
        num_inputs = length - 1
        ahead = [b * num_inputs // batch_size for b in range(batch_size)]
        for x, y, reset in islice(Streams(tokens, batch_size, window), 3 * length // window + 3):
            assert torch.equal(y, x + 1)
            expected = [[(place + t) % num_inputs for t in range(window)] for place in ahead]
            assert x.tolist() == expected
            ahead = [place + window for place in ahead]
            empty = torch.zeros_like(x, dtype=torch.bool) if reset is None else reset
            assert torch.equal(empty, x == 0)

    def test_a_window_may_change_on_the_way(self):
        batches = Streams(torch.arange(101), 2, 5)
        next(batches)
        batches.window = 7
        assert next(batches).x.tolist() == [list(range(5, 12)), list(range(55, 62))]
        assert next(batches).x[:, 0].tolist() == [12, 62]


class TestDocuments:
    """Where a document begins, the memory is emptied."""

    @given(
        st.integers(2, 60),
        sizes,
        st.sets(st.integers(0, 59), min_size=1),
        st.sampled_from(["windows", "streams", "in order"]),
    )
    def test_reset_is_where_a_document_starts(
        self, length: int, window: int, places: set[int], way: str
    ):
        assume(length > window)
        starts = torch.zeros(length, dtype=torch.bool)
        starts[[place % length for place in places]] = True
        tokens = torch.arange(length)
        batches = {
            "windows": lambda: RandomWindows(tokens, 3, window, starts=starts),
            "streams": lambda: Streams(tokens, 3, window, starts=starts),
            "in order": lambda: windows_in_order(tokens, window, 3, starts=starts),
        }[way]()
        for x, _, reset in islice(batches, 20):
            expected = starts[x] | (x == 0) if way == "streams" else starts[x]
            assert (reset is not None) == bool(expected.any()), "None is faster than nowhere"
            assert reset is None or torch.equal(reset, expected)


class TestWindowsInOrder:
    @given(st.integers(2, 200), sizes, sizes, st.sampled_from(DTYPES))
    def test_each_token_is_predicted_once(
        self, length: int, window: int, batch_size: int, dtype: torch.dtype
    ):
        tokens = torch.arange(length).to(dtype)
        batches = list(windows_in_order(tokens, window, batch_size))
        inputs = torch.cat([batch.x.flatten() for batch in batches])
        targets = torch.cat([batch.y.flatten() for batch in batches])
        assert inputs.tolist() == list(range(length - 1))
        assert targets.tolist() == list(range(1, length))
        for x, y, reset in batches:
            assert x.dtype == y.dtype == torch.int64
            assert x.shape == y.shape
            assert reset is None
        rest = (length - 1) % window
        whole = batches[:-1] if rest else batches
        assert all(batch.x.shape == (batch_size, window) for batch in whole[:-1])
        assert all(batch.x.shape[1] == window for batch in whole)
        if rest:
            assert batches[-1].x.shape == (1, rest)

    def test_takes_a_part_with_strides(self):
        batches = list(windows_in_order(torch.arange(40)[::2], 3, 2))
        assert torch.cat([b.y.flatten() for b in batches]).tolist() == list(range(2, 40, 2))

    @pytest.mark.parametrize("length", [0, 1])
    def test_nothing_to_predict(self, length: int):
        with pytest.raises(UserError, match="at least two tokens"):
            windows_in_order(torch.arange(length), 5, 2)
