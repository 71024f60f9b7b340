"""The figures of a model: parameters by part, FLOPs per token, memory of its state."""

from collections import Counter
from dataclasses import dataclass

from openxlstm.config import LAYER_KINDS, ModelConfig
from openxlstm.lm.cost import flops_per_token
from openxlstm.lm.model import LanguageModel
from openxlstm.states import state_bytes


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures of a model; `str` formats them as a table."""

    parts: dict[str, int]
    """Parameters by part, in the order of the forward pass; 0 for a tied head."""
    flops_per_token: int
    """Floating-point operations per token, forward; a multiply-add is two."""
    state_bytes: int
    """Bytes of one sequence's state, for any length."""

    @property
    def num_parameters(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        width = max(len(name) for name in self.parts)
        rows = [f"{name:<{width}}  {count:>12,}" for name, count in self.parts.items()]
        return "\n".join(
            [
                *rows,
                f"{'parameters':<{width}}  {self.num_parameters:>12,}",
                f"{'FLOPs per token':<{width}}  {self.flops_per_token:>12,}",
                f"{'state bytes':<{width}}  {self.state_bytes:>12,}",
            ]
        )


def summarize(model: LanguageModel) -> Summary:
    """Computes the figures of a model from its parameters, configuration and state."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        counts[_part(name, model.config)] += parameter.numel()
    if model.config.tie_weights:
        counts["head"] = 0
    return Summary(
        parts=dict(counts),
        flops_per_token=flops_per_token(model.config),
        state_bytes=state_bytes(model.initial_state(1)),
    )


def _part(name: str, config: ModelConfig) -> str:
    match name.split("."):
        case ["stack", "blocks", index, *_]:
            return f"block {index} ({LAYER_KINDS[config.layers[int(index)]]})"
        case ["stack", "norm", *_]:
            return "norm"
        case [first, *_]:
            return first.replace("_", " ")
    raise AssertionError(name)
