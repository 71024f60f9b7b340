"""What the tests of `XLSTM` and the cells share: layers of all kinds, and states that compare."""

from typing import Any

import torch
from torch import Tensor, nn

from openxlstm import XLSTM
from openxlstm.states import MLSTMState, SLSTMState, XLSTMState

KINDS: dict[str, dict[str, Any]] = {
    "s": {"layers": "s"},
    "m": {"layers": "m"},
    "sms": {"layers": "sms"},
    "s without convolution": {"layers": "ss", "slstm_conv_kernel_size": 0, "slstm_ff_factor": 0.0},
    "exp": {"layers": "s", "slstm_forget_gate": "exp", "bias": True},
    "bare": {"layers": "smm", "block": "bare", "bias": True},
    "large": {"layers": "mm", "block": "large"},
    "both ways": {"layers": "ms", "bidirectional": True},
}
"""Options by name: every kind of block, and both directions."""

I, H = 3, 16


def make_rnn(kind: str, *, dtype: torch.dtype = torch.float64, **options: Any) -> XLSTM:
    """A layer of random weights, none of them 0 or 1, in evaluation mode."""
    values = {"num_heads": 2, "batch_first": True, **KINDS[kind], **options}
    return randomize(XLSTM(I, H, **values)).to(dtype).eval()


def randomize(module: nn.Module) -> Any:
    """The module, with gates from all over their range."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return module


def content(state: Any) -> dict[str, Tensor]:
    """What a state holds, by name, free of the stabilizer's gauge: C·exp(m), n·exp(m), c/n."""
    found: dict[str, Tensor] = {}

    def look(name: str, part: Any) -> None:
        if isinstance(part, MLSTMState):
            scale = part.m.double().exp()
            found[f"{name}.C"] = part.C * scale[..., None, None]
            found[f"{name}.n"] = part.n * scale[..., None]
        elif isinstance(part, SLSTMState):
            found[f"{name}.h"] = part.h
            found[f"{name}.n"] = part.n * part.m.double().exp()
            found[f"{name}.c"] = part.c * part.m.double().exp()
        elif isinstance(part, Tensor):
            found[name] = part
        elif part is not None:
            names = getattr(part, "_fields", range(len(part)))
            for key, value in zip(names, part, strict=True):
                look(f"{name}.{key}", value)

    look("state", state)
    return found


def random_state(rnn: XLSTM, batch_size: int) -> XLSTMState:
    """A state that some random steps have left."""
    dtype = next(rnn.parameters()).dtype
    x = torch.randn(batch_size, 5, rnn.input_size, dtype=dtype)
    with torch.no_grad():
        return rnn(x if rnn.batch_first else x.transpose(0, 1))[1]
