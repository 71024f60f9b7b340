"""The tasks ask what they say, and answer it."""

import pytest
import torch

from openxlstm.experiments import long_memory, recall, state_tracking
from openxlstm.experiments.state_tracking import MINUS, PLUS, TASKS, TIMES, asked_after


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_parity() -> None:
    bits, odd = state_tracking.parity(20, 9, seeded())
    for row, states in zip(bits.tolist(), odd.tolist(), strict=True):
        assert states == [sum(row[: end + 1]) % 2 for end in range(9)]
    assert 0.3 < bits.float().mean() < 0.7


def test_cycle_navigation() -> None:
    moves, places = state_tracking.cycle_navigation(20, 30, seeded())
    assert set(moves.unique().tolist()) == {0, 1, 2}
    for row, states in zip(moves.tolist(), places.tolist(), strict=True):
        place = 0
        for move, state in zip(row, states, strict=True):
            place = (place + {0: -1, 1: 0, 2: 1}[move]) % 5
            assert state == place


def test_walks_go_round() -> None:
    """Each has its own mix of moves, so that many leave any range that counting would do for."""
    moves, _ = state_tracking.cycle_navigation(200, 40, seeded())
    far = (moves - 1).sum(1).abs()
    assert (far > 20).float().mean() > 0.2


def test_modular_arithmetic() -> None:
    ids, values = state_tracking.modular_arithmetic(20, 12, seeded())
    signs = {PLUS: "+", MINUS: "-", TIMES: "*"}
    for row, states in zip(ids.tolist(), values.tolist(), strict=True):
        value = 1
        for place in range(0, 12, 2):
            assert row[place] in signs
            assert row[place] != TIMES or row[place + 1] > 3
            assert 3 <= row[place + 1] < 8
            value = eval(f"({value}) {signs[row[place]]} {row[place + 1] - 3}") % 5
            assert states[place + 1] == value


@pytest.mark.parametrize("name", TASKS)
def test_where_states_are_asked(name: str) -> None:
    task = TASKS[name]
    batch = asked_after(task, 3, 8, seeded())
    assert batch.asked.sum() == len(batch.answers) == 24 // task.every
    assert batch.asked[:, -1].all()
    assert batch.ids.max() < task.num_symbols
    assert batch.answers.max() < task.num_states


@pytest.mark.parametrize(("pairs", "vocab_size"), [(1, 8), (4, 8), (64, 8192), (64, 256)])
def test_recall(pairs: int, vocab_size: int) -> None:
    batch = recall.draw_recall(256, pairs, vocab_size, seeded())
    ids, answers = batch.ids, batch.answers.view(len(batch.ids), pairs)
    assert ids.shape == (256 // pairs, 3 * pairs)
    assert torch.equal(batch.asked[0], torch.arange(3 * pairs) >= 2 * pairs)
    for row, expected in zip(ids.tolist(), answers.tolist(), strict=True):
        value_of = dict(zip(row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        assert len(value_of) == pairs, "no key comes twice"
        assert max(value_of) < vocab_size // 2 <= min(value_of.values())
        assert [value_of[key] for key in row[2 * pairs :]] == expected
        assert set(row[2 * pairs :]) == set(value_of)


def test_distinct_draws_again_what_is_there_twice() -> None:
    rows = recall.distinct(70000, 4, 5, seeded())
    assert all(len(set(row)) == 4 for row in rows[:100].tolist())
    assert (rows.sort(1).values.diff(dim=1) > 0).all()
    assert [round(share, 2) for share in (rows.flatten().bincount() / rows.numel()).tolist()] == [
        0.2
    ] * 5


@pytest.mark.parametrize("gap", [1, 20])
def test_memory(gap: int) -> None:
    ids, asked, answers = long_memory.draw_copying(3, gap, seeded())
    word = long_memory.WORD
    assert ids.shape == (3, gap + 2 * word)
    assert torch.equal(ids[:, :word].flatten(), answers)
    assert (ids[:, :word] < 8).all()
    noise = ids[:, word:-word]
    assert ((noise >= 8) & (noise < 16)).all()
    assert (ids[:, -word] == long_memory.MARK).all()
    assert (ids[:, 1 - word :] == long_memory.BLANK).all()
    assert asked[:, -word:].all()
    assert asked.sum() == answers.numel()


def test_memory_learns_from_gaps_up_to_a_length() -> None:
    gaps = [long_memory.draw_up_to(64, seeded(seed)).ids.shape[1] - 8 for seed in range(40)]
    assert min(gaps) >= 32
    assert 50 < max(gaps) <= 64
