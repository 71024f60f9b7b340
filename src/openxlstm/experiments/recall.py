"""Associative recall: 64 pairs of a key and a value, then a question for each key.

Multi-query associative recall of Arora et al. (arXiv:2312.04927), which the xLSTM paper uses
(arXiv:2405.04517, section 4.1): 8192 tokens, half of them keys, half values. A sequence binds each
of its keys to a random value and then asks for all of them in another order. Differences from the
original: the queries follow one another without filler, and embedding and head share one matrix, so
that the outputs of 4096 values need not be learned one by one. Training starts with few pairs and
continues with more as they are mastered.

B batch · P pairs · T = 3·P time
"""

from collections.abc import Callable

import torch
from torch import nn

from openxlstm.experiments.claims import ContenderResult
from openxlstm.experiments.contenders import LSTMBody, Reader, StackBody
from openxlstm.experiments.curriculum import Examples, Recipe, Tell, outcome, right_answers, train
from openxlstm.experiments.transformer import Transformer

WIDTH, VOCAB_SIZE, MOST_PAIRS = 64, 8192, 64
PAIRS = (1, 2, 4, 8, 16, 32, 48, 64)
"""Numbers of pairs at which the accuracy is measured."""

BODIES: dict[str, tuple[str, float, Callable[[], nn.Module]]] = {
    "mLSTM": (
        "2 blocks, 1 head", 5e-3,
        lambda: StackBody(embedding_dim=WIDTH, layers="mm", num_heads=1),
    ),
    "sLSTM": (
        "2 blocks, 2 heads", 5e-3,
        lambda: StackBody(
            embedding_dim=WIDTH, layers="ss", num_heads=2, slstm_recurrent_init="uniform"
        ),
    ),
    "nn.LSTM": ("2 layers", 5e-3, lambda: LSTMBody(WIDTH, 2)),
    "Transformer": ("2 blocks, 4 heads", 5e-3, lambda: Transformer(WIDTH, 2, 4)),
}  # fmt: skip
"""Description, learning rate and constructor of each contender."""


def run(name: str, contender: str, seed: int, quick: bool, tell: Tell) -> ContenderResult:
    """Trains and evaluates one contender."""
    assert name == "recall"
    vocab_size, most = (256, 8) if quick else (VOCAB_SIZE, MOST_PAIRS)
    about, learning_rate, make_body = BODIES[contender]
    torch.manual_seed(seed)
    model = Reader(vocab_size, vocab_size, WIDTH, make_body(), tied=True)
    recipe = Recipe(
        steps=160 if quick else 2000,
        learning_rate=learning_rate,
        levels=[n for n in (1, 2, 4, 8, 16, 32, 64) if n <= most],
        patience=0.45,
        pass_accuracy=0.8,
        solved_loss=0.05,
        warmup=0.03,
    )

    def draw_level(pairs: int, generator: torch.Generator) -> Examples:
        return draw_recall(128 if quick else queries(pairs), pairs, vocab_size, generator)

    trained = train(model, draw_level, recipe, seed, tell)
    answers = 512 if quick else 8192
    accuracy = {n: recall_accuracy(model, n, vocab_size, answers) for n in PAIRS if n <= most}
    return outcome(contender, about, model, recipe, trained, accuracy, answers)


def recall_accuracy(model: Reader, pairs: int, vocab_size: int, answers: int) -> float:
    """The accuracy over `answers` answers in sequences of `pairs` pairs."""
    generator = torch.Generator().manual_seed(2**32 + pairs)
    batch = draw_recall(answers, pairs, vocab_size, generator)
    return right_answers(model, batch, rows=max(1, 1024 // pairs)).float().mean().item()


def queries(pairs: int) -> int:
    """Queries per training step: few with few pairs, where the number of steps matters more."""
    return min(128 * pairs, 1024)


def draw_recall(queries: int, pairs: int, vocab_size: int, generator: torch.Generator) -> Examples:
    """Sequences of P pairs with `queries` queries in total."""
    B, half = max(1, queries // pairs), vocab_size // 2
    keys = distinct(B, pairs, half, generator)  # (B, P)
    values = torch.randint(half, vocab_size, (B, pairs), generator=generator)
    order = torch.rand(B, pairs, generator=generator).argsort(1)
    told = torch.stack([keys, values], 2).flatten(1)
    ids = torch.cat([told, keys.gather(1, order)], 1)
    asked = torch.zeros(ids.shape, dtype=torch.bool)
    asked[:, 2 * pairs :] = True
    return Examples(ids, asked, values.gather(1, order).flatten())


def distinct(rows: int, count: int, below: int, generator: torch.Generator) -> torch.Tensor:
    """Rows of `count` different numbers in [0, below) each, in random order."""
    if rows * below <= 1 << 18:
        return torch.rand(rows, below, generator=generator).topk(count, 1).indices
    numbers = torch.randint(below, (rows, count), generator=generator)
    while True:  # duplicates are rare among so many numbers, and are drawn again
        ordered, order = numbers.sort(1)
        again = torch.zeros(numbers.shape, dtype=torch.bool)
        again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        if not again.any():
            return numbers
        again = torch.zeros_like(again).scatter(1, order, again)
        numbers[again] = torch.randint(below, (int(again.sum()),), generator=generator)
