"""Which parameters weight decay is for."""

from typing import Any

from torch import nn

from openxlstm.nn.conv import CausalConv1d
from openxlstm.nn.linear import HeadwiseLinear


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: what decays, and the rest, both in the module's own order.

    The matrices that project activations decay: linear and headwise projections, convolutions, and
    the input weights of gates. Biases, norms, skips, embeddings (tied heads with them) and
    recurrent weights do not: a decayed recurrence forgets.
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
