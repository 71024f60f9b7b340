"""Measures how well a model predicts a text."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.lm.model import LanguageModel, evaluation_mode
from openxlstm.train.processes import ALONE, Processes


class BatchLike(Protocol):
    """Token ids x (B, T), their next tokens y (B, T), and where the state is reset (B, T) bool."""

    @property
    def x(self) -> Tensor: ...
    @property
    def y(self) -> Tensor: ...
    @property
    def reset(self) -> Tensor | None: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A mean loss, in three units."""

    loss: float
    """Nats per token."""
    tokens: int
    """Number of predicted tokens."""
    characters_per_token: float = 1.0
    """Mean number of characters per token."""

    @property
    def perplexity(self) -> float:
        """exp(loss), inf if that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_character(self) -> float:
        """The loss in bits per character of the text."""
        return self.loss / math.log(2) / self.characters_per_token

    def to_dict(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "bits_per_character": self.bits_per_character,
            "tokens": self.tokens,
        }


def evaluate(
    model: LanguageModel,
    batches: Iterable[BatchLike],
    *,
    carry_state: bool = False,
    characters_per_token: float = 1.0,
    processes: Processes = ALONE,
) -> Evaluation:
    """Computes the mean loss over all tokens of `batches`.

    Args:
        model: evaluated without dropout; its training flags are restored.
        batches: finitely many; each process gets its own rows.
        carry_state: whether a batch continues the one before it; otherwise each row starts from the
            empty state.
        characters_per_token: used for bits per character.
        processes: the processes that share the evaluation.

    Raises:
        ValueError: if there are no batches.
    """
    total, tokens, state = 0.0, 0, None
    device = next(model.parameters()).device
    # Not inference_mode: parameters that FSDP gathers there could not be trained with later.
    with evaluation_mode(model), torch.no_grad():
        for batch in batches:
            x, y = batch.x.to(device), batch.y.to(device)
            reset = None if batch.reset is None else batch.reset.to(device)
            logits, state_after = model(x, state, reset)
            state = state_after if carry_state else None
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
            total += loss.item()
            tokens += y.numel()
    total, num_tokens = processes.totals(total, tokens)
    tokens = int(num_tokens)
    if tokens == 0:
        raise ValueError("there are no batches to evaluate")
    return Evaluation(loss=total / tokens, tokens=tokens, characters_per_token=characters_per_token)
