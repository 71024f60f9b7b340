"""What a run tells those who watch it. Imports no torch."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.evaluate import Evaluation


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Time on the clock, evaluations included, pauses between resumed parts not."""
    skipped: int = 0
    """Steps that were left out, since their loss or gradient was no number."""
    best_loss: float = math.inf
    """Lowest validation loss so far, in nats a token."""
    best_step: int = 0
    """Step at which that was."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a callback is told after an optimizer step."""

    step: int
    tokens: int
    seconds: float
    share: float
    """Share of the run that is done."""
    loss: float
    """Loss of this step's batch, in nats a token."""
    learning_rate: float
    gradient_norm: float
    """Norm of the whole gradient before clipping."""
    skipped: bool = False
    """Whether the step was left out, since its loss or gradient was no number."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a callback is told after an evaluation."""

    step: int
    tokens: int
    seconds: float
    train: "Evaluation"
    val: "Evaluation"
    best: bool
    """Whether this is the lowest validation loss so far."""
    model: "LanguageModel | None" = None
    """What was measured. Of a model in shards a whole copy, and that only if a callback
    `wants_model`."""


class Callback:
    """Hears of a run, in its first process; a subclass says what it wants to hear."""

    wants_model: bool = False
    """Whether it computes with the model that an evaluation is told with."""

    def on_start(self, progress: Progress) -> None: ...
    def on_step(self, step: Step) -> None: ...
    def on_evaluated(self, evaluated: Evaluated) -> None: ...
