"""The loop: levels, when it ends, and that it learns."""

import pytest
import torch

from openxlstm.experiments.contenders import LSTMBody, Reader
from openxlstm.experiments.curriculum import Examples, Recipe, latest, right_answers, train

RECIPE = Recipe(
    steps=120, learning_rate=2e-2, levels=(2, 3, 4), pass_accuracy=0.95, solved_loss=0.05
)


def echo(length: int, generator: torch.Generator) -> Examples:
    """Say each symbol again."""
    ids = torch.randint(3, (16, length), generator=generator)
    return Examples(ids, torch.ones(ids.shape, dtype=torch.bool), ids.flatten())


def new_model() -> Reader:
    torch.manual_seed(0)
    return Reader(3, 3, 16, LSTMBody(16, 1))


def test_it_learns_and_stops_when_it_has() -> None:
    model, told, levels = new_model(), [], []

    def draw(level: int, generator: torch.Generator) -> Examples:
        levels.append(level)
        return echo(level, generator)

    trained = train(model, draw, RECIPE, 0, lambda share, words: told.append((share, words)))
    assert trained.solved
    assert trained.steps == len(levels) < 120
    assert levels == sorted(levels)
    assert set(levels) == {2, 3, 4}
    examined = echo(6, torch.Generator().manual_seed(9))
    right = right_answers(model, examined, rows=5)
    assert right.shape == (96,)
    assert right.float().mean() > 0.95


def test_the_same_seed_is_the_same_run() -> None:
    weights = []
    for seed in (1, 1, 2):
        model = new_model()
        train(model, echo, RECIPE, seed, lambda share, words: None)
        weights.append(model.head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_who_is_late_sees_the_last_level_all_the_same() -> None:
    levels = []

    def hopeless(level: int, generator: torch.Generator) -> Examples:
        levels.append(level)
        ids, asked, _ = echo(level, generator)
        return Examples(ids, asked, torch.randint(3, (ids.numel(),), generator=generator))

    trained = train(new_model(), hopeless, RECIPE, 0, lambda share, words: None)
    assert (trained.steps, trained.solved) == (120, False)
    assert levels.count(4) >= 59
    assert [latest(place, RECIPE) for place in range(3)] == pytest.approx([20, 40, 60])
