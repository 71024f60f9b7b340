"""Counts the work of an operation, independent of the implementation.

Only matrix products are counted, as in `lm.cost`: no element-wise arithmetic, no masked halves, and
no recomputation, so that recomputing code does not look faster.

mLSTM, per head and step, forward + backward, in chunks of L = 64:
    within the chunk        3·L·(DQK + DHV)     two products forward, four backward, causal half
    the memory              12·DQK·DHV          written and read forward; twice that backward
sLSTM, per head and step, forward + backward:
    the recurrent product   24·DH²              and its transpose, and the weight's gradient
A training step takes `lm.cost.training_flops_per_token`, generation `lm.cost.flops_per_token`.

Bytes are the least memory traffic in float32, if all intermediate tensors stay in a cache:
    an op                   each input and the gradient of the result read; the result and each
                            input's gradient written
    a training step         each parameter and its two moments read and written
    a generated token       each weight read (one row of an embedding), the state read and written
Small models stay in a cache, which is faster than the copy that defines the limit. For these, the
limit of generation is not a lower bound.
"""

from openxlstm.bench.limits import Work
from openxlstm.config import ModelConfig
from openxlstm.lm.cost import flops_per_token, mlstm_chunk_flops, training_flops_per_token

FLOAT = 4
"""Bytes of a number."""


def mlstm_work(B: int, NH: int, T: int, DQK: int, DHV: int) -> Work:
    """One mLSTM, forward and backward."""
    flops = 3 * mlstm_chunk_flops(DQK, DHV) + 12 * DQK * DHV
    inputs, result = 2 * DQK + DHV + 2, DHV
    return Work(flops, (2 * inputs + 2 * result) * FLOAT).times(B * NH * T)


def slstm_work(B: int, T: int, NH: int, DH: int) -> Work:
    """One sLSTM scan, forward and backward."""
    steps = B * T * NH
    numbers = steps * (2 * 4 * DH + 2 * DH) + 2 * NH * 4 * DH * (DH + 1)  # weight and bias
    return Work(steps * 24 * DH * DH, numbers * FLOAT)


def training_work(config: ModelConfig, num_parameters: int, num_tokens: int) -> Work:
    """One training step on `num_tokens` tokens: forward, backward and AdamW."""
    flops = training_flops_per_token(config) * num_tokens
    return Work(flops, 6 * FLOAT * num_parameters)


def generation_work(
    config: ModelConfig, num_parameters: int, state_bytes: int, num_tokens: int
) -> Work:
    """`num_tokens` tokens of one stream, one after another."""
    unread = (config.vocab_size - 1) * config.embedding_dim
    bytes_a_token = FLOAT * (num_parameters - unread) + 2 * state_bytes
    return Work(flops_per_token(config), bytes_a_token).times(num_tokens)
