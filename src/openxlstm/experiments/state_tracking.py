"""State tracking: parity, a walk on a cycle, and arithmetic, from short sequences to long ones.

Three tasks of the formal languages of Delétang et al. (arXiv:2207.02098), which the xLSTM paper
uses (arXiv:2405.04517, section 4.1). A model reads symbols and predicts the state after each one.
Training uses up to 40 symbols, evaluation up to 256.

Differences from the original: an answer is requested after every symbol (every number), not only at
the end, and each sequence draws its own mix of symbols. With one even mix, a walk of 40 steps stays
near its start, so that counting without wrapping around looks as good as knowing the cycle.

B batch · T time
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openxlstm.experiments.claims import ContenderResult
from openxlstm.experiments.contenders import LSTMBody, Reader, StackBody
from openxlstm.experiments.curriculum import Examples, Recipe, Tell, outcome, right_answers, train
from openxlstm.experiments.transformer import Transformer

WIDTH = 64
LONGEST_TRAINED, LONGEST = 40, 256
LENGTHS = (4, 8, 16, 24, 32, 40, 48, 64, 96, 128, 160, 192, 224, 256)
"""Lengths at which the accuracy is measured."""
MODULUS = 5
PLUS, MINUS, TIMES = 0, 1, 2

Draw = Callable[[int, int, torch.Generator], tuple[Tensor, Tensor]]
"""Makes B sequences of T symbols: ids (B, T), and the state after each (B, T)."""


@dataclass(frozen=True)
class Task:
    """One formal language."""

    draw: Draw
    num_symbols: int
    num_states: int
    steps: int
    """Optimizer steps at most."""
    every: int = 1
    """Symbols between two requested answers."""


def mixed(batch_size: int, length: int, num_symbols: int, generator: torch.Generator) -> Tensor:
    """Random symbols (B, T); each row has its own, often uneven, mix."""
    weights = torch.rand(batch_size, num_symbols, generator=generator) ** 3 + 1e-3
    return torch.multinomial(weights, length, replacement=True, generator=generator)


def parity(batch_size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bits, and whether the number of ones so far is odd."""
    bits = torch.randint(2, (batch_size, length), generator=generator)
    return bits, bits.cumsum(1) % 2


def cycle_navigation(
    batch_size: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Steps (back, stay, forth) on a cycle of five places, and the place after each."""
    moves = mixed(batch_size, length, 3, generator)
    return moves, (moves - 1).cumsum(1) % MODULUS


def modular_arithmetic(
    batch_size: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The value modulo 5 of a calculation such as 1+3−1×4×2+0, worked from left to right.

    Symbols 0 to 2 are the operators, 3 to 7 the numbers. They alternate, after an implicit 1. There
    is no multiplication by 0, which would make everything before it irrelevant."""
    operators = mixed(batch_size, length // 2, 3, generator)
    numbers = torch.randint(MODULUS, operators.shape, generator=generator)
    nonzero = torch.randint(1, MODULUS, operators.shape, generator=generator)
    numbers = torch.where(operators == TIMES, nonzero, numbers)
    value = torch.ones(batch_size, dtype=torch.long)
    values = []
    for operator, number in zip(operators.T, numbers.T, strict=True):
        signed = torch.where(operator == MINUS, -number, number)
        value = torch.where(operator == TIMES, value * number, value + signed) % MODULUS
        values.append(value)
    ids = torch.stack([operators, numbers + 3], 2).flatten(1)
    return ids, torch.stack(values, 1).repeat_interleave(2, 1)


TASKS = {
    "parity": Task(parity, 2, 2, steps=2000),
    "cycle-navigation": Task(cycle_navigation, 3, MODULUS, steps=3000),
    "modular-arithmetic": Task(modular_arithmetic, 3 + MODULUS, MODULUS, steps=6000, every=2),
}

BODIES: dict[str, tuple[str, float, Callable[[], nn.Module]]] = {
    "sLSTM": (
        "1 block, 1 head",
        1e-2,
        lambda: StackBody(
            embedding_dim=WIDTH, layers="s", num_heads=1, slstm_recurrent_init="uniform"
        ),
    ),
    "mLSTM": ("2 blocks, 4 heads", 3e-3, lambda: StackBody(embedding_dim=WIDTH, layers="mm")),
    "nn.LSTM": ("2 layers", 1e-2, lambda: LSTMBody(WIDTH, 2)),
    "Transformer": ("2 blocks, 4 heads", 1e-3, lambda: Transformer(WIDTH, 2, 4)),
}  # fmt: skip
"""Description, learning rate and constructor of each contender."""


def run(name: str, contender: str, seed: int, quick: bool, tell: Tell) -> ContenderResult:
    """Trains and evaluates one contender on the task `name`."""
    task = TASKS[name]
    about, learning_rate, make_body = BODIES[contender]
    torch.manual_seed(seed)
    model = Reader(task.num_symbols, task.num_states, WIDTH, make_body())
    recipe = Recipe(
        steps=100 if quick else task.steps,
        learning_rate=learning_rate,
        levels=range(4, LONGEST_TRAINED + 1, 4),
        pass_accuracy=0.98,
        solved_loss=1e-4,
    )
    trained = train(
        model,
        lambda length, generator: asked_after(task, 32, length, generator),
        recipe,
        seed,
        tell,
    )
    sequences = 128 if quick else 1024
    examined = asked_after(task, sequences, LONGEST, torch.Generator().manual_seed(2**32 + 1))
    right = right_answers(model, examined, rows=64).view(sequences, -1).float().mean(0)
    accuracy = {n: right[n // task.every - 1].item() for n in LENGTHS}
    return outcome(contender, about, model, recipe, trained, accuracy, sequences)


def asked_after(task: Task, rows: int, length: int, generator: torch.Generator) -> Examples:
    """Sequences with an answer requested at every step that has one."""
    ids, states = task.draw(rows, length, generator)
    asked = torch.zeros(ids.shape, dtype=torch.bool)
    asked[:, task.every - 1 :: task.every] = True
    return Examples(ids, asked, states[asked])
