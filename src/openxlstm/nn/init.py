"""Initialization of all parameters (arXiv:2405.04517, appendix).

| parameter | initialization |
|---|---|
| embedding, head, projections up, query, key, value, input weights of the sLSTM | `small_init_` |
| projections back to the residual stream | `wang_init_` |
| mLSTM gate weights · biases | 0 · input gate N(0, 0.1), forget gate from 3 to 6 over the heads |
| sLSTM recurrent weights · forget bias · other biases | 0 or ±1/√D · `powerlaw_forget_bias` · 0 |
| convolution | ±1/√K |
| norm weights (scale 1 + weight) · mLSTM skip | 0 · 1 |

The large block follows xLSTM-7B (arXiv:2503.13427, section 3.2), which differs in

| parameter | initialization |
|---|---|
| weights of the output gate | 0 |
| input gate's biases | -10, so that little is written at the start of training |
| norm weights | 1 |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def small_init_(weight: Tensor, dim: int) -> Tensor:
    """N(0, √(2/(5·dim))), after Nguyen and Salazar (arXiv:1910.05895); dim is the model's width."""
    return nn.init.normal_(weight, std=(2 / (5 * dim)) ** 0.5)


def wang_init_(weight: Tensor, dim: int, num_blocks: int) -> Tensor:
    """N(0, 2/(num_blocks·√dim)), so that the residual stream keeps its scale over depth."""
    return nn.init.normal_(weight, std=2 / (num_blocks * dim**0.5))


def uniform_init_(weight: Tensor, dim: int) -> Tensor:
    """U(-1/√dim, 1/√dim), as in `torch.nn.LSTM`."""
    return nn.init.uniform_(weight, -(dim**-0.5), dim**-0.5)


def zero_biases_(*projections: nn.Linear) -> None:
    """Sets the biases of projections to 0, if they have any."""
    for projection in projections:
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)


def powerlaw_forget_bias(head_dim: int, block_index: int, num_blocks: int) -> Tensor:
    """Forget gate biases of a head (DH,), falling from +5 (remember) to -7 (forget) along a power
    law with more long memories in deeper blocks."""
    depth = block_index / (num_blocks - 1) if num_blocks > 1 else 0.0
    position = torch.arange(head_dim) / max(head_dim - 1, 1)
    return 5 - 12 * position ** (0.3 + 1.3 * depth)


def mlstm_forget_bias(num_heads: int) -> Tensor:
    """Biases of the forget gates of an mLSTM's heads (NH,), from 3 to 6."""
    # The explicit device keeps transformers from moving torch.linspace off the meta device.
    return torch.linspace(3.0, 6.0, num_heads, device=torch.get_default_device())


@contextmanager
def without_memory() -> Iterator[None]:
    """Creates modules without memory: inside the context, weights are on the meta device and not
    initialized. torch's random state does not change."""
    with torch.random.fork_rng(devices=[]), _WithoutMemory():
        yield


class _WithoutMemory(TorchFunctionMode):
    """Creates tensors on the meta device, and skips random initialization.

    `torch.device("meta")` would also compute small tensors such as gate biases there, for which
    torch imports its compiler, which takes most of a second.
    """

    FACTORIES = (torch.empty, torch.zeros, torch.ones)
    DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.FACTORIES and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        if func in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
