"""The operations in plain PyTorch, for every device and dtype."""
