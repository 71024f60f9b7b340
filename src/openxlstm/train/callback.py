"""Callbacks of the training loop, and what they receive. Imports no torch."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.evaluate import Evaluation


@dataclass
class Progress:
    """The progress of a run; saved with every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Time in training and evaluations, without the time between a stop and a resume."""
    skipped: int = 0
    """Steps that were skipped since their loss or gradient was not finite."""
    best_loss: float = math.inf
    """Lowest validation loss so far, in nats per token."""
    best_step: int = 0
    """Step of the lowest validation loss."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step, as callbacks receive it afterwards."""

    step: int
    tokens: int
    seconds: float
    share: float
    """Share of the run that is done."""
    loss: float
    """Loss of this step's batch, in nats per token."""
    learning_rate: float
    gradient_norm: float
    """Norm of the gradient over all parameters, before clipping."""
    skipped: bool = False
    """Whether the step was skipped since its loss or gradient was not finite."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation, as callbacks receive it afterwards."""

    step: int
    tokens: int
    seconds: float
    train: "Evaluation"
    val: "Evaluation"
    best: bool
    """Whether this is the lowest validation loss so far."""
    model: "LanguageModel | None" = None
    """The evaluated model. For a sharded model it is an unsharded copy, and None unless a callback
    has `wants_model`."""


class Callback:
    """Receives the events of a run in its first process; subclasses override some methods."""

    wants_model: bool = False
    """Whether `on_evaluated` needs the model."""

    def on_start(self, progress: Progress) -> None: ...
    def on_step(self, step: Step) -> None: ...
    def on_evaluated(self, evaluated: Evaluated) -> None: ...
