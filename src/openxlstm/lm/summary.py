"""What a model costs: parameters by part, arithmetic a token, memory of its state."""

from collections import Counter
from dataclasses import dataclass

from openxlstm.config import LAYER_KINDS, ModelConfig
from openxlstm.lm.cost import flops_per_token
from openxlstm.lm.model import LanguageModel
from openxlstm.states import state_bytes


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A model in figures; `str` makes a table of it."""

    parts: dict[str, int]
    """Parameters by part, in the order of the forward pass; a tied head counts 0."""
    flops_per_token: int
    """Floating-point operations to read one token, a multiply-add counting as two."""
    state_bytes: int
    """Memory of one sequence's state, whatever its length."""

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
                f"{'FLOPs a token':<{width}}  {self.flops_per_token:>12,}",
                f"{'state bytes':<{width}}  {self.state_bytes:>12,}",
            ]
        )


def summarize(model: LanguageModel) -> Summary:
    """The figures of a model, counted from its parameters, its configuration and its state."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():  # yields a tied parameter once
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
