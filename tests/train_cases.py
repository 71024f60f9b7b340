"""What the tests of training share: a small model, a small text, and what a run tells."""

from typing import Any

import torch

from openxlstm.config import ModelConfig, TrainConfig
from openxlstm.lm.model import LanguageModel
from openxlstm.train.callback import Callback, Evaluated, Progress, Step


class Recorder(Callback):
    """Keeps all that it is told, and the order of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.starts: list[Progress] = []
        self.steps: list[Step] = []
        self.evaluations: list[Evaluated] = []

    def on_start(self, progress: Progress) -> None:
        self.calls.append("start")
        self.starts.append(Progress(**vars(progress)))

    def on_step(self, step: Step) -> None:
        self.calls.append(f"step {step.step}")
        self.steps.append(step)

    def on_evaluated(self, evaluated: Evaluated) -> None:
        self.calls.append(f"evaluated {evaluated.step}")
        self.evaluations.append(evaluated)

    def facts(self) -> list[tuple[float, ...]]:
        """What it was told, but for the time."""
        steps = [(s.step, s.tokens, s.share, s.loss, s.learning_rate, s.gradient_norm)
                 for s in self.steps]  # fmt: skip
        evaluations = [
            (e.step, e.tokens, e.train.loss, e.val.loss, e.best) for e in self.evaluations
        ]
        return [*steps, *evaluations]


def make_model(seed: int = 0, **options: Any) -> LanguageModel:
    defaults: dict[str, Any] = {
        "vocab_size": 6, "embedding_dim": 16, "layers": "ms", "num_heads": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    return LanguageModel(ModelConfig.from_options(**{**defaults, **options}))


def make_config(**options: Any) -> TrainConfig:
    """Eight steps, evaluated at 0, 3, 6 and 8."""
    return TrainConfig(**{"steps": 8, "eval_every": 3, "learning_rate": 0.01, **options})


TOKENS = torch.tensor([0, 1, 2, 3, 4, 5, 3, 1] * 40)
"""A text that repeats itself: what comes next is easy to learn."""
