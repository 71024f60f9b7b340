"""Long memory: recall of symbols after a long noise.

The copy task of Hochreiter and Schmidhuber (1997, doi:10.1162/neco.1997.9.8.1735, experiment 2) and
Arjovsky et al. (arXiv:1511.06464), with noise in the gap, which must not enter the memory: 4
symbols of an alphabet of 8, then noise of 8 other symbols, then a mark and 3 blanks, at which the
model repeats the 4 symbols in order. Training uses gaps of up to 1024 steps, evaluation gaps of up
to 4096.

B batch · T time
"""

from collections.abc import Callable

import torch
from torch import nn

from openxlstm.experiments.claims import ContenderResult
from openxlstm.experiments.contenders import LSTMBody, Reader, StackBody
from openxlstm.experiments.curriculum import Examples, Recipe, Tell, outcome, right_answers, train
from openxlstm.experiments.transformer import Transformer

WIDTH = 64
WORD, ALPHABET, NOISE = 4, 8, 8
MARK, BLANK = ALPHABET + NOISE, ALPHABET + NOISE + 1
LONGEST_TRAINED, GAPS = 1024, (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

BODIES: dict[str, tuple[str, float, Callable[[], nn.Module]]] = {
    "mLSTM": ("2 blocks, 4 heads", 3e-3, lambda: StackBody(embedding_dim=WIDTH, layers="mm")),
    "sLSTM": (
        "2 blocks, 4 heads", 5e-3,
        lambda: StackBody(embedding_dim=WIDTH, layers="ss", slstm_recurrent_init="uniform"),
    ),
    "nn.LSTM": ("2 layers", 5e-3, lambda: LSTMBody(WIDTH, 2)),
    "Transformer": ("2 blocks, 4 heads", 1e-3, lambda: Transformer(WIDTH, 2, 4)),
}  # fmt: skip
"""Description, learning rate and constructor of each contender."""


def run(name: str, contender: str, seed: int, quick: bool, tell: Tell) -> ContenderResult:
    """Trains and evaluates one contender."""
    assert name == "memory"
    about, learning_rate, make_body = BODIES[contender]
    torch.manual_seed(seed)
    model = Reader(BLANK + 1, ALPHABET, WIDTH, make_body())
    recipe = Recipe(
        steps=60 if quick else 1200,
        learning_rate=learning_rate,
        levels=(4, 8) if quick else (4, 8, 16, 32, 64, 128, 256, 512, LONGEST_TRAINED),
        pass_accuracy=0.97,
        solved_loss=2e-5,
    )
    trained = train(model, draw_up_to, recipe, seed, tell)
    rows, longest = (32, 256) if quick else (128, GAPS[-1])
    accuracy = {}
    for gap in GAPS:
        if gap <= longest:
            batch = draw_copying(rows, gap, torch.Generator().manual_seed(2**32 + gap))
            right = right_answers(model, batch, rows=max(1, 8192 // gap))
            accuracy[gap] = right.float().mean().item()
    return outcome(contender, about, model, recipe, trained, accuracy, rows * WORD)


def draw_up_to(longest: int, generator: torch.Generator) -> Examples:
    """A training batch with a gap from longest / 2 to `longest`, with more rows if it is short."""
    gap = int(torch.randint(longest // 2, longest + 1, (1,), generator=generator))
    return draw_copying(max(8, min(128, 8192 // longest)), gap, generator)


def draw_copying(rows: int, gap: int, generator: torch.Generator) -> Examples:
    """Sequences of 4 symbols, `gap` steps of noise, and the question."""
    word = torch.randint(ALPHABET, (rows, WORD), generator=generator)
    noise = torch.randint(ALPHABET, ALPHABET + NOISE, (rows, gap), generator=generator)
    question = torch.tensor([MARK] + [BLANK] * (WORD - 1)).expand(rows, WORD)
    ids = torch.cat([word, noise, question], 1)
    asked = torch.zeros(ids.shape, dtype=torch.bool)
    asked[:, -WORD:] = True
    return Examples(ids, asked, word.flatten())
