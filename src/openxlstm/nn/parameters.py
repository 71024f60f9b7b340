"""Parameter groups for weight decay."""

from typing import Any

from torch import nn

from openxlstm.nn.conv import CausalConv1d
from openxlstm.nn.linear import HeadwiseLinear


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer: with and without weight decay, in the module's order.

    Weight decay applies to matrices that project activations: linear and headwise projections,
    convolutions, and the input weights of gates. It does not apply to biases, norms, skips,
    embeddings (with tied heads) and recurrent weights, whose decay would weaken the memory.
    """
    decayed = {
        parameter
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if (name == "weight" and isinstance(part, nn.Linear | HeadwiseLinear | CausalConv1d))
        or name in ("input_weight", "gate_weight")
    }
    embeddings = {part.weight for part in module.modules() if isinstance(part, nn.Embedding)}
    decayed -= embeddings
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trained if p not in decayed], "weight_decay": 0.0},
    ]
