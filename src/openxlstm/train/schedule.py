"""The learning-rate schedule."""

import math

from openxlstm.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, progress: float) -> float:
    """The learning rate of one step.

    Args:
        config: shape and limits of the schedule.
        step: optimizer steps done.
        progress: share of the run that is done, by steps, tokens or time, in [0, 1].
    """
    high, low = config.learning_rate, config.min_learning_rate
    if progress < config.warmup:
        # At the first step progress is 0, and the rate should not be.
        return high * max(progress / config.warmup, 0.01)
    if config.schedule == "constant":
        return high
    if config.decay_steps is not None:
        decayed = step / config.decay_steps
    else:
        decayed = (progress - config.warmup) / (1 - config.warmup)
    if config.schedule == "cosine":  # past 1 it rises again, as torch's CosineAnnealingLR does
        return low + (high - low) * (1 + math.cos(math.pi * decayed)) / 2
    return high + (low - high) * min(decayed, 1.0)
