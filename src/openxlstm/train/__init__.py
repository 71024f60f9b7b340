"""Training, evaluation, checkpoints and the loss curve. Knows models, not text."""
