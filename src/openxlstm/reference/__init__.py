"""The paper's equations in plain PyTorch: what every fast path is tested against.

Read these files next to arXiv:2405.04517. They are written to be right and readable in any dtype;
they are slow, and autograd differentiates them.
"""
