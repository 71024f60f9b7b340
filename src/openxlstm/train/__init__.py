"""Training: the loop, evaluation, checkpoints, distribution, metrics. It reads tokens, not text."""
