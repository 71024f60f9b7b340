"""Batches: what is in them, that nothing is left out, and that a break changes nothing."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from time import process_time

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from openxlstm.data.batches import Batch, RandomWindows, Streams, deal, windows_in_order
from openxlstm.data.tokens import Tokens
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
        tokens = Tokens(torch.arange(100).to(dtype))
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
        tokens = Tokens(torch.arange(length))
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
        batch = next(kind(Tokens(tokens), 2, 5))
        batch.x.zero_()
        batch.y.zero_()
        assert torch.equal(tokens, torch.arange(50))

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_window_grows(self, kind: type[RandomWindows | Streams]):
        """Each of 4, 8, 16 and 20 tokens for a quarter of the run."""
        batches = kind(Tokens(torch.arange(100)), 4, 20, first_window=4)
        shapes = []
        for share in (0.0, 0.24, 0.25, 0.5, 0.74, 0.75, 0.99, 1.0):
            batches.advance(share)
            x, y, _ = next(batches)
            assert torch.equal(y, x + 1)
            shapes.append(tuple(x.shape))
        rows = (20, 8, 4, 4) if kind is RandomWindows else (4, 4, 4, 4)
        sizes = list(zip(rows, (4, 8, 16, 20), strict=True))
        assert shapes == [sizes[i] for i in (0, 0, 1, 2, 2, 3, 3, 3)]

    @pytest.mark.parametrize("kind", KINDS)
    def test_short_text(self, kind: type[RandomWindows | Streams]):
        with pytest.raises(UserError) as caught:
            kind(Tokens(torch.arange(50)), 2, 64)
        assert str(caught.value) == (
            "the training part has 50 tokens, but a window of 64 needs 65: "
            "give more text or a smaller --window"
        )
        with pytest.raises(UserError, match="the held-out part has 7 tokens"):
            kind(Tokens(torch.arange(7)), 1, 7, part="the held-out part")
        next(kind(Tokens(torch.arange(8)), 1, 7))

    @pytest.mark.parametrize("make", [*KINDS, lambda t, b, w: windows_in_order(t, w, b)])
    @pytest.mark.parametrize(
        ("tokens", "batch_size", "window", "reason"),
        [
            (torch.rand(50), 2, 5, "one-dimensional integers, not float32"),
            (torch.ones(50, dtype=torch.bool), 2, 5, "one-dimensional integers, not bool"),
            (torch.arange(50)[None], 2, 5, "one-dimensional integers"),
            (torch.arange(50), 0, 5, "batch_size must be positive, not 0"),
            (torch.arange(50), 2, 0, "window must be positive, not 0"),
        ],
    )
    def test_nonsense(
        self,
        make: Callable[[Tokens, int, int], Iterator[Batch]],
        tokens: Tensor,
        batch_size: int,
        window: int,
        reason: str,
    ):
        with pytest.raises(UserError, match=reason):
            make(Tokens(tokens), batch_size, window)

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_fast(self, kind: type[RandomWindows | Streams]):
        batches = kind(Tokens(torch.zeros(1_000_000, dtype=torch.uint8)), 12, 64)
        seconds = []
        for _ in range(10):
            start = process_time()
            list(islice(batches, 100))
            seconds.append((process_time() - start) / 100)
        assert min(seconds) < 500e-6  # 30 to 70 µs of this process are usual


class TestRanks:
    """Processes that share a batch."""

    @pytest.mark.parametrize("kind", KINDS)
    @given(
        world_size=st.integers(1, 4),
        each=st.integers(1, 3),
        window=st.integers(1, 9),
        sizes=st.lists(st.integers(10, 40), min_size=1, max_size=3),
        data=st.data(),
    )
    def test_their_rows_are_the_batch_of_one(
        self,
        kind: type[RandomWindows | Streams],
        world_size: int,
        each: int,
        window: int,
        sizes: list[int],
        data: st.DataObject,
    ):
        corpora = [Tokens(torch.arange(n), starts=[[0, n // 2]]) for n in sizes]
        first_window = data.draw(st.integers(1, window))
        batch_size = world_size * each
        assume(batch_size >= len(corpora))
        options = {"first_window": first_window}
        alone = kind(corpora, batch_size, window, **options)
        ranks = [
            kind(corpora, batch_size, window, **options, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for share in (0.0, 0.3, 0.6, 1.0):
            for batches in (alone, *ranks):
                batches.advance(share)
            whole, parts = next(alone), [next(batches) for batches in ranks]
            assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
            assert torch.equal(whole.y, torch.cat([part.y for part in parts]))
            assert len({len(part.x) for part in parts}) == 1
            resets = [
                torch.zeros_like(part.x, dtype=torch.bool) if part.reset is None else part.reset
                for part in (whole, *parts)
            ]
            assert torch.equal(resets[0], torch.cat(resets[1:]))
            assert all(batches.state_dict() == alone.state_dict() for batches in ranks)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_that_cannot_be_shared(self, kind: type[RandomWindows | Streams]):
        with pytest.raises(UserError, match="make --batch-size a multiple of 4"):
            kind(Tokens(torch.arange(50)), 6, 5, world_size=4)


class TestMixtures:
    """Several corpora, told apart by their ids."""

    def corpora(self, *lengths: int) -> list[Tokens]:
        return [Tokens(1000 * k + torch.arange(n)) for k, n in enumerate(lengths)]

    @pytest.mark.parametrize("weights", [(3.0, 1.0), (), (0.1, 0.1)])
    def test_windows_come_by_weight(self, weights: tuple[float, ...]):
        batches = RandomWindows(self.corpora(900, 300), 100, 4, weights=weights)
        x = torch.cat([batch.x for batch in islice(batches, 40)])
        assert (x // 1000 == x[:, :1] // 1000).all(), "a window is of one corpus"
        expected = 0.5 if weights == (0.1, 0.1) else 0.75  # without weights, by size
        assert abs((x[:, 0] < 1000).double().mean() - expected) < 0.03
        for k, length in enumerate((900, 300)):
            starts = x[x[:, 0] // 1000 == k][:, 0] - 1000 * k
            assert starts.min() < 0.02 * length
            assert starts.max() > 0.97 * length - 4

    def test_rows_of_streams_are_dealt_by_weight(self):
        batches = Streams(self.corpora(101, 41), 6, 4, weights=(2, 1))
        first, second = next(batches), next(batches)
        assert first.x[:, 0].tolist() == [0, 25, 50, 75, 1000, 1020]
        assert second.x[:, 0].tolist() == [4, 29, 54, 79, 1004, 1024]
        *_, wrapped = islice(batches, 9)  # 5 of 8 rows have come to the end of their corpus
        assert wrapped.x[4].tolist() == [1000 + place % 40 for place in range(40, 44)]
        assert wrapped.reset is not None
        assert wrapped.reset[4].tolist() == [True, False, False, False]

    @given(st.integers(1, 40), st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
    def test_dealing(self, rows: int, weights: list[float]):
        assume(rows >= len(weights))
        dealt = deal(rows, weights)
        assert sum(dealt) == rows
        assert min(dealt) >= 1
        shares = [rows * weight / sum(weights) for weight in weights]
        if min(shares) >= 1:
            assert all(abs(d - s) < 1 for d, s in zip(dealt, shares, strict=True))

    def test_windows_in_order_read_one_after_another(self):
        batches = list(windows_in_order(self.corpora(10, 5), 4, 16))
        assert torch.cat([batch.y.flatten() for batch in batches]).tolist() == [
            *range(1, 10), *range(1001, 1005),
        ]  # fmt: skip
        begins = [None if b.reset is None else b.x[b.reset].tolist() for b in batches]
        assert begins == [[0], None, [1000]], "a state that is carried is emptied between them"

    def test_what_cannot_be_mixed(self):
        with pytest.raises(UserError, match="a batch of 1 has no row for each of 2 corpora"):
            Streams(self.corpora(50, 50), 1, 4)
        for weights in [(1.0,), (1.0, 0.0), (1.0, 2.0, 3.0)]:
            with pytest.raises(UserError, match="give one positive weight per corpus"):
                RandomWindows(self.corpora(50, 50), 1, 4, weights=weights)
        with pytest.raises(UserError, match="part of corpus 2 has 3 tokens"):
            RandomWindows(self.corpora(50, 3), 1, 4)


class TestRandomWindows:
    def test_the_draws_of_a_seed_stay(self):
        """Runs and presets rely on them."""
        batches = RandomWindows(Tokens(torch.arange(10**6)), 4, 64, seed=3)
        assert [batch.x[:, 0].tolist() for batch in islice(batches, 2)] == [
            [862003, 934222, 270249, 79156],
            [814719, 740048, 521692, 848291],
        ]

    @given(st.integers(2, 12), sizes)
    def test_every_place_comes_up(self, length: int, window: int):
        assume(length > window)
        batches = RandomWindows(Tokens(torch.arange(length)), 100, window)
        starts = torch.cat([batch.x[:, 0] for batch in islice(batches, 10)])
        assert starts.unique().tolist() == list(range(length - window))
        last = max(int(batch.y.max()) for batch in islice(batches, 10))
        assert last == length - 1

    def test_places_are_even(self):
        batches = RandomWindows(Tokens(torch.arange(11)), 1000, 1)
        counts = torch.cat([batch.x[:, 0] for batch in islice(batches, 10)]).bincount(minlength=10)
        assert counts.min() > 880  # 1000 each, with a standard deviation of 30
        assert counts.max() < 1120

    def test_seeds_differ(self):
        tokens = Tokens(torch.arange(10**6))
        seen = set()
        for seed in (0, 1, 2, -1, 2**32, 2**63, 2**64 - 2):
            for batch in islice(RandomWindows(tokens, 4, 2, seed), 50):
                seen.add(tuple(batch.x[:, 0].tolist()))
        assert len(seen) == 7 * 50

    def test_seed_is_all_that_counts(self):
        tokens = Tokens(torch.arange(1000))
        one = list(islice(RandomWindows(tokens, 4, 2, seed=3), 5))
        torch.manual_seed(123)
        before = torch.get_rng_state()
        two = list(islice(RandomWindows(tokens, 4, 2, seed=3), 5))
        assert all(map(identical, one, two))
        assert torch.equal(before, torch.get_rng_state())

    def test_state_brings_its_seed(self):
        tokens = Tokens(torch.arange(1000))
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
        tokens = Tokens(torch.arange(length))
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
        batches = Streams(Tokens(torch.arange(101)), 2, 5)
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
        tokens = Tokens(torch.arange(length), starts=[starts.nonzero().flatten()])
        batches = {
            "windows": lambda: RandomWindows(tokens, 3, window),
            "streams": lambda: Streams(tokens, 3, window),
            "in order": lambda: windows_in_order(tokens, window, 3),
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
        tokens = Tokens(torch.arange(length).to(dtype))
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
        batches = list(windows_in_order(Tokens(torch.arange(40)[::2]), 3, 2))
        assert torch.cat([b.y.flatten() for b in batches]).tolist() == list(range(2, 40, 2))

    @pytest.mark.parametrize("length", [0, 1])
    def test_nothing_to_predict(self, length: int):
        with pytest.raises(UserError, match="at least two tokens"):
            windows_in_order(Tokens(torch.arange(length)), 5, 2)
