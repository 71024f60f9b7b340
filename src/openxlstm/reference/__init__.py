"""The paper's equations in plain PyTorch, against which every fast path is tested.

Read these files next to arXiv:2405.04517. They are correct and readable in any dtype, and slow.
Autograd computes their gradients.
"""
