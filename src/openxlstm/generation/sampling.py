"""Sampling: from logits to tokens.

One uniform number per token selects it by its position in the cumulative sum of the probabilities.
The number is drawn on the CPU, so that a seed selects the same tokens on every device.

B batch
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openxlstm.errors import UserError

GREEDY_BELOW = 1e-6
"""Lower temperatures are greedy: they would only amplify rounding errors of float32 logits."""

ROW_STRIDE = 0x9E3779B9
"""Distance between the seeds of neighbouring rows; odd, so that no two rows share a seed."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Options of sampling, applied in the order temperature, top-k, top-p.

    Raises UserError for an invalid value.
    """

    temperature: float = 1.0
    """Divides the logits: below 1 sharpens the distribution; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Samples from exactly this many of the likeliest tokens, or from all if there are fewer. Which
    of equally likely tokens at the limit are kept is not specified."""
    top_p: float | None = None
    """Samples from the fewest likeliest tokens whose probabilities add up to at least this."""
    vocab_size: int | None = None
    """Samples from this many first ids only, for a model with a padded vocabulary."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature={self.temperature} is not a number from 0 up; try 0.8")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k={self.top_k} leaves no token; give 1 or more, or leave it out")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not above 0 and at most 1; try 0.95")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise UserError(f"vocab_size={self.vocab_size} leaves no token; give 1 or more")


def sample(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Samples one token per row: logits (B, vocab) → ids (B,) int64, on the device of the logits.

    Temperature 0 takes the likeliest token, the first of several; the other options are those of
    `Sampling`. `generator` is a CPU generator; None uses torch's default. -inf excludes a token.
    Raises UserError for an invalid option and for logits that are NaN or +inf.
    """
    return draw(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p), generator)


def draw(
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """`sample` with its options as one value, and one generator for all rows or one per row."""
    scores = logits.detach()[:, : sampling.vocab_size].float().cpu()  # (B, V)
    if sampling.temperature < GREEDY_BELOW:
        best, ids = scores.max(-1)
        check_logits(best)
        return ids.to(logits.device)

    scores = scores / sampling.temperature
    order = None
    if sampling.top_k is not None or sampling.top_p is not None:
        num_tokens = scores.shape[-1]
        scores, order = scores.topk(min(sampling.top_k or num_tokens, num_tokens))

    # In float64, because a float32 sum over a large vocabulary would lose its rare tokens.
    cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    check_logits(total)
    if sampling.top_p is not None:
        last = torch.searchsorted(cumulative, sampling.top_p * total)  # the first to reach it
        total = cumulative.gather(-1, last)
    # The first sum *above* the number: never a token of probability 0, never past `total`.
    ids = torch.searchsorted(cumulative, uniform(len(scores), generator) * total, right=True)
    if order is not None:
        ids = order.gather(-1, ids)
    return ids.squeeze(-1).to(logits.device)


def uniform(num_rows: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    """Random numbers in [0, 1), one per row (B, 1), float64."""
    if generator is None or isinstance(generator, torch.Generator):
        return torch.rand((num_rows, 1), dtype=torch.float64, generator=generator)
    assert len(generator) == num_rows
    rows = [torch.rand((1, 1), dtype=torch.float64, generator=own) for own in generator]
    return torch.cat(rows)


def check_logits(values: Tensor) -> None:
    """Raises UserError if the sum of `values`, and so one of them, is not finite."""
    if not math.isfinite(values.sum().item()):
        raise UserError(
            "the model's logits are not finite: its weights are damaged or its training diverged; "
            "use an earlier checkpoint"
        )


def row_generators(seed: int | None, num_rows: int) -> list[torch.Generator]:
    """One generator per row, seeded by the seed and the row; by chance if the seed is None.

    The generator of the first row is seeded with `seed` itself.
    """
    first = torch.Generator().seed() if seed is None else seed
    return [
        torch.Generator().manual_seed((first + row * ROW_STRIDE) % 2**64) for row in range(num_rows)
    ]
