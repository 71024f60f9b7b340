"""Statistics of the gates of a language model's blocks: is a memory unused, or saturated?"""

from torch import Tensor, inference_mode, nn

from openxlstm.config import LAYER_KINDS
from openxlstm.lm.model import LanguageModel, evaluation_mode
from openxlstm.nn.gates import GateStatistics, gates_of, statistics

__all__ = ["GateStatistics", "gate_statistics"]


def gate_statistics(
    model: LanguageModel, ids: Tensor, reset: Tensor | None = None
) -> dict[str, GateStatistics]:
    """Gate statistics of each block while the model reads ids (B, T) from the empty state.

    Does not change the model's mode, its gradients or torch's random state. It computes every layer
    twice and iterates over time in Python: meant for evaluations, not for every step.

    Returns:
        statistics by block, such as "block 0 (sLSTM)"; kinds of blocks without any are skipped.
    """
    found: dict[str, GateStatistics] = {}
    with evaluation_mode(model), inference_mode():
        x, _ = model.embed(ids, reset=reset)
        for index, block in enumerate(model.stack.blocks):
            norm, layer = getattr(block, "norm", None), getattr(block, "layer", None)
            if isinstance(norm, nn.Module) and isinstance(layer, nn.Module):
                gates = gates_of(layer, norm(x), reset)
                if gates is not None:
                    name = f"block {index} ({LAYER_KINDS[model.config.layers[index]]})"
                    found[name] = statistics(gates)
            x, _ = block.forward(x, None, reset)  # as it is, even where it has been compiled
    return found
