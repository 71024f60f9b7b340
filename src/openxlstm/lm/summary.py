"""What a model costs: parameters by part, arithmetic a token, memory of its state."""

from collections import Counter
from dataclasses import dataclass

from openxlstm.config import LAYER_KINDS, ModelConfig
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


def flops_per_token(config: ModelConfig) -> int:
    """Operations of the forward pass for one token in its recurrent form, products only.

    The backward pass takes twice as many. A chunkwise mLSTM adds (DQK + DHV)·chunk_size for each
    head and step to what the recurrent form does.
    """
    D, NH = config.embedding_dim, config.num_heads
    E, F = config.mlstm_inner_dim, config.slstm_ff_dim
    multiply_adds = D * config.vocab_size  # head
    for kind in config.layers:
        if kind == "s":
            multiply_adds += D * config.slstm_conv_kernel_size
            multiply_adds += 2 * 4 * D * (D // NH)  # gates from the input and from the state
            multiply_adds += 3 * D * F
        else:
            multiply_adds += E * config.mlstm_conv_kernel_size
            multiply_adds += D * 2 * E + E * D  # up, down
            multiply_adds += 3 * E * config.mlstm_qkv_block_size  # q, k, v
            multiply_adds += 2 * NH * 3 * E  # gates
            multiply_adds += 3 * E * (E // NH)  # write k vᵀ with decay, read Cᵀ q
    return 2 * multiply_adds
