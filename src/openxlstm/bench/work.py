"""How much work the mathematics is: counted once, and the same whatever code did it.

Counted are products, a multiply-add as two operations. Not counted are exponentials and other
element-wise arithmetic, norms, AdamW's arithmetic, masked halves, and all that is computed twice:
a code that recomputes does not look faster for it. A backward pass has two products for each of the
forward pass.

mLSTM, for each head and step, forward + backward, in chunks of L = 64:
    within the chunk        3·L·(DQK + DHV)     two products forward, four backward, causal half
    the memory              12·DQK·DHV          written and read forward; twice that backward
sLSTM, for each head and step, forward + backward:
    the recurrent product   24·DH²              and its transpose, and the weight's gradient
A training step takes three times the forward pass of `lm.summary.flops_per_token`, with each mLSTM
in chunks, as above, in place of its recurrent form. Generation takes that forward pass as it is.

Bytes are the least that has to move, in float32, if everything in between stays in a cache:
    an op                   each input, and the gradient of the result, read; the result, and each
                            input's gradient, written
    a training step         each parameter and its two moments read and written
    a generated token       each weight read (of an embedding one row), the state read and written
Small weights stay in a cache, which is faster than the copy that the limit is taken from: there the
limit of generation is no lower bound.
"""

from openxlstm.bench.limits import Work
from openxlstm.config import ModelConfig
from openxlstm.lm.summary import flops_per_token

CHUNK = 64
FLOAT = 4
"""Bytes of a number."""


def mlstm_work(B: int, NH: int, T: int, DQK: int, DHV: int) -> Work:
    """One mLSTM, forward and backward."""
    flops = 3 * mlstm_chunk_flops(DQK, DHV) + 12 * DQK * DHV
    inputs, result = 2 * DQK + DHV + 2, DHV
    return Work(flops, (2 * inputs + 2 * result) * FLOAT).times(B * NH * T)


def mlstm_chunk_flops(DQK: int, DHV: int) -> int:
    """What a head and step adds to reading and writing the memory, forward."""
    return CHUNK * (DQK + DHV)


def slstm_work(B: int, T: int, NH: int, DH: int) -> Work:
    """One sLSTM scan, forward and backward."""
    steps = B * T * NH
    numbers = steps * (2 * 4 * DH + 2 * DH) + 2 * NH * 4 * DH * (DH + 1)  # weight and bias
    return Work(steps * 24 * DH * DH, numbers * FLOAT)


def training_work(config: ModelConfig, num_parameters: int, num_tokens: int) -> Work:
    """One step: forward, backward and AdamW, on so many tokens."""
    flops = flops_per_token(config)
    head_dim = config.mlstm_inner_dim // config.num_heads
    for kind in config.layers:
        if kind == "m":
            # The recurrent form decays the memory at each step, the chunkwise one at each chunk.
            flops -= 2 * config.num_heads * head_dim * head_dim
            flops += config.num_heads * mlstm_chunk_flops(head_dim, head_dim)
    return Work(3 * flops * num_tokens, 6 * FLOAT * num_parameters)


def generation_work(
    config: ModelConfig, num_parameters: int, state_bytes: int, num_tokens: int
) -> Work:
    """So many tokens of one stream, one after another."""
    unread = (config.vocab_size - 1) * config.embedding_dim
    bytes_a_token = FLOAT * (num_parameters - unread) + 2 * state_bytes
    return Work(flops_per_token(config), bytes_a_token).times(num_tokens)
