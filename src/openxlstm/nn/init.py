"""How every parameter starts (arXiv:2405.04517, appendix; `docs/notation.md` has the table).

| parameter | start |
|---|---|
| embedding, head, projections up, query, key, value, input weights of the sLSTM | `small_init_` |
| projections back to the residual stream | `wang_init_` |
| mLSTM gate weights · biases | 0 · input gate N(0, 0.1), forget gate from 3 to 6 over the heads |
| sLSTM recurrent weights · forget bias · other biases | 0 or ±1/√D · `powerlaw_forget_bias` · 0 |
| convolution | ±1/√K |
| norm scales (stored less 1) · mLSTM skip | 0 · 1 |

The large block starts as xLSTM-7B did (arXiv:2503.13427, section 3.2): the same, but for

| parameter | start |
|---|---|
| weights of the output gate | 0 |
| input gate's biases | -10, so that little is written before the model knows what |
| norm scales (stored whole) | 1 |
"""

import torch
from torch import Tensor, nn


def small_init_(weight: Tensor, dim: int) -> Tensor:
    """N(0, √(2/(5·dim))), after Nguyen and Salazar (arXiv:1910.05895); dim is the model's width."""
    return nn.init.normal_(weight, std=(2 / (5 * dim)) ** 0.5)


def wang_init_(weight: Tensor, dim: int, num_blocks: int) -> Tensor:
    """N(0, 2/(num_blocks·√dim)), so that the residual stream keeps its scale over depth."""
    return nn.init.normal_(weight, std=2 / (num_blocks * dim**0.5))


def uniform_init_(weight: Tensor, dim: int) -> Tensor:
    """U(-1/√dim, 1/√dim), as `torch.nn.LSTM` starts."""
    return nn.init.uniform_(weight, -(dim**-0.5), dim**-0.5)


def zero_biases_(*projections: nn.Linear) -> None:
    """Biases of 0, where there are any."""
    for projection in projections:
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)


def powerlaw_forget_bias(head_dim: int, block_index: int, num_blocks: int) -> Tensor:
    """Forget gate biases of a head (DH,): from +5, remember, falling to -7, forget, along a power
    law that keeps more long memories in deeper blocks."""
    depth = block_index / (num_blocks - 1) if num_blocks > 1 else 0.0
    position = torch.arange(head_dim) / max(head_dim - 1, 1)
    return 5 - 12 * position ** (0.3 + 1.3 * depth)


def mlstm_forget_bias(num_heads: int) -> Tensor:
    """Biases of the forget gates of an mLSTM's heads (NH,), from 3 to 6."""
    # The device is said, for transformers has torch.linspace leave the meta device otherwise.
    return torch.linspace(3.0, 6.0, num_heads, device=torch.get_default_device())
