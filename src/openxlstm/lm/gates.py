"""The gates of a language model's blocks as it reads: is a memory dead, or full?"""

from torch import Tensor, inference_mode, nn

from openxlstm.config import LAYER_KINDS
from openxlstm.lm.model import LanguageModel, evaluation_mode
from openxlstm.nn.gates import GateStatistics, gates_of, statistics

__all__ = ["GateStatistics", "gate_statistics"]


def gate_statistics(
    model: LanguageModel, ids: Tensor, reset: Tensor | None = None
) -> dict[str, GateStatistics]:
    """What the gates of each block did while the model read ids (B, T) from the empty state.

    Leaves the model's mode, its gradients and torch's random state alone. It computes every layer
    twice and walks through time in Python: for evaluations, not for every step.

    Returns:
        by block, such as "block 0 (sLSTM)"; a kind of layer that cannot be looked into is left out.
    """
    found: dict[str, GateStatistics] = {}
    hooks = []
    for index, block in enumerate(model.stack.blocks):
        name = f"block {index} ({LAYER_KINDS[model.config.layers[index]]})"

        # Before the layer and not after it: parameters that are gathered to run it are there.
        def look(layer: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            gates = gates_of(layer, inputs[0], reset)
            if gates is not None:
                found[name] = statistics(gates)

        layer = getattr(block, "layer", None)
        if isinstance(layer, nn.Module):
            hooks.append(layer.register_forward_pre_hook(look))
    try:
        with evaluation_mode(model), inference_mode():
            model(ids, reset=reset)
    finally:
        for hook in hooks:
            hook.remove()
    return found
