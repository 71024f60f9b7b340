"""How well a model predicts a text that it was not trained on."""

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
    """Token ids x (B, T), the tokens y (B, T) that follow them, and where the state is emptied."""

    @property
    def x(self) -> Tensor: ...
    @property
    def y(self) -> Tensor: ...
    @property
    def reset(self) -> Tensor | None: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The mean loss over some tokens, in three units."""

    loss: float
    """Nats a token."""
    tokens: int
    """Tokens that were predicted."""
    characters_per_token: float = 1.0
    """Characters of text that a token stands for, on average."""

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many tokens the model hesitates."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_character(self) -> float:
        """loss in bits, for each character of the text."""
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
    """The mean loss over all tokens of `batches`.

    Args:
        model: left in the mode, training or not, that it was in.
        batches: a finite run of them.
        carry_state: whether a batch goes on where the one before it stopped; otherwise each of its
            rows starts from the empty state.
        characters_per_token: for bits per character.
        processes: among which the rows of the batches are dealt out.

    Raises:
        ValueError: if there is nothing to evaluate.
    """
    total, tokens, state = 0.0, 0, None
    device = next(model.parameters()).device
    # Not inference_mode: what a model in shards gathers then could not be trained with later.
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
