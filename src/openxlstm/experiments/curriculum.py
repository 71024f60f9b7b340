"""Training of all contenders: AdamW on new examples that become harder, until the task is solved.

B batch · T time · N requested answers
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from openxlstm.experiments.claims import ContenderResult
from openxlstm.experiments.contenders import Reader

MEMORY = 0.95
"""Decay of the running accuracy and loss per step."""

COOLING = 0.1
"""Share of the steps over which the learning rate falls to 0 after the task is solved."""

BETAS = 0.9, 0.95
"""AdamW's betas. Weight decay is 0: the tasks are exact, and examples never repeat."""

TELL_EVERY = 0.5
"""Seconds between two reports of progress."""

Tell = Callable[[float, str], object]
"""Receives the completed share of the work, and a status text."""


class Examples(NamedTuple):
    """Examples and the requested answers."""

    ids: Tensor
    """(B, T) int64."""
    asked: Tensor
    """(B, T) bool: true where an answer is requested."""
    answers: Tensor
    """(N,) int64, in the order of rows and steps."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Length, rates and levels of the training; the same for all contenders except where noted."""

    steps: int
    """Optimizer steps at most."""
    learning_rate: float
    """Highest rate: reached after `warmup`, constant until half of the run, then falling to 0."""
    levels: Sequence[int]
    """Difficulties from easy to hard, e.g. lengths. The next level starts when `pass_accuracy` is
    reached, or in time to keep half of the steps for the last level."""
    patience: float = 0.0
    """Share of the steps before a level may end unpassed: some tasks are learned suddenly."""
    pass_accuracy: float
    """Running accuracy that starts the next level."""
    solved_loss: float
    """Running loss at the last level, in nats per answer, that ends the training early."""
    warmup: float = 0.04
    """Share of the steps over which the rate rises from 0."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient."""


class Trained(NamedTuple):
    """Length and success of a training."""

    steps: int
    seconds: float
    solved: bool
    """Whether the training ended early."""


def train(
    model: Reader, draw: Callable[[int, torch.Generator], Examples], recipe: Recipe, seed: int,
    tell: Tell,
) -> Trained:  # fmt: skip
    """Trains on examples from `draw(level, generator)`, each used once."""
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, betas=BETAS, weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(seed)
    place, accuracy, loss_of_late = 0, 0.0, 1.0
    end, falling, solved = recipe.steps, recipe.steps / 2, False
    start = told = time.perf_counter()
    step = 0
    while step < end:
        fall = min((end - step) / falling, 1.0)
        warm = min(step / (recipe.warmup * recipe.steps) + 0.01, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(warm, fall)
        ids, asked, answers = draw(recipe.levels[place], generator)
        logits = model(ids, asked)
        loss = F.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        step += 1

        right = (logits.argmax(-1) == answers).float().mean().item()
        accuracy = MEMORY * accuracy + (1 - MEMORY) * right
        if time.perf_counter() - told > TELL_EVERY:
            told = time.perf_counter()
            tell(step / end, f"level {recipe.levels[place]}, accuracy {accuracy:.1%}")
        if place < len(recipe.levels) - 1:
            if accuracy > recipe.pass_accuracy or step > latest(place, recipe):
                place += 1
                accuracy *= 0.9  # the next level has to be passed again
            continue
        loss_of_late = MEMORY * loss_of_late + (1 - MEMORY) * loss.item()
        if not solved and loss_of_late < recipe.solved_loss:
            solved, falling = True, COOLING * recipe.steps / fall
            end = min(end, step + round(COOLING * recipe.steps))
    return Trained(end, time.perf_counter() - start, solved)


def outcome(
    contender: str, about: str, model: Reader, recipe: Recipe, trained: Trained,
    accuracy: dict[int, float], answers: int,
) -> ContenderResult:  # fmt: skip
    """The results of a trained contender, with `answers` answers per accuracy."""
    return ContenderResult(
        contender=contender,
        about=f"{about}, rate {recipe.learning_rate:g}",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        seconds=trained.seconds,
        steps=trained.steps,
        curves={"accuracy": accuracy},
        answers=answers,
    )


def latest(place: int, recipe: Recipe) -> float:
    """The step at which a level ends in any case."""
    share = (place + 1) / len(recipe.levels)
    return recipe.steps * (recipe.patience + (0.5 - recipe.patience) * share)


@torch.no_grad()
def right_answers(model: Reader, batch: Examples, rows: int) -> Tensor:
    """Whether each answer is right (N,) bool; reads `rows` rows at a time."""
    found = []
    for start in range(0, len(batch.ids), rows):
        part = slice(start, start + rows)
        found.append(model(batch.ids[part], batch.asked[part]).argmax(-1))
    return torch.cat(found) == batch.answers
