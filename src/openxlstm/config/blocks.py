"""Options of the blocks that stand around the cells of a stack: one class per kind of block.

The text under each field is its documentation and the help of its command-line option.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from openxlstm.errors import UserError
from openxlstm.strict import Config, check_fields, require

BlockKind = Literal["paper", "large", "bare"]


@dataclass(frozen=True, kw_only=True)
class BlockConfig(Config):
    """Options of one kind of block, which stands around every cell of a stack.

    To add a kind, derive from this class, list it in BLOCK_CONFIGS and BlockKind, and build it in
    `nn.stack`. To add a cell to a kind, e.g. an sLSTM to large blocks, add its letter to CELLS and
    its options to the fields. To add an activation of the mLSTM's input gate, e.g. the sigmoid of
    arXiv:2503.14376, add a field with today's "exp" as its default: files written without it then
    keep their meaning.
    """

    CELLS: ClassVar[str] = "sm"
    """Letters of the cells that this kind of block can hold."""
    LOGIT_SOFT_CAP: ClassVar[float] = 0.0
    """Default of `ModelConfig.logit_soft_cap`."""

    kind: BlockKind
    """Name of the kind of block."""

    def mlstm_dims(self, embedding_dim: int) -> tuple[int, int]:
        """Width of an mLSTM's keys and of its values, of all heads together."""
        return embedding_dim, embedding_dim

    def check(self, layers: str, embedding_dim: int, num_heads: int) -> None:
        """Raises UserError if the sizes of a stack do not fit this block."""


@dataclass(frozen=True, kw_only=True)
class PaperBlockConfig(BlockConfig):
    """The blocks of arXiv:2405.04517, figures 10 and 11."""

    kind: Literal["paper"] = "paper"
    """Name of the kind of block."""
    mlstm_proj_factor: float = 2.0
    """Inner width of an mLSTM block divided by embedding_dim. The width is rounded up to a multiple
    of 64."""
    mlstm_qkv_block_size: int = 4
    """Size of the diagonal blocks of the query, key and value projections of an mLSTM block."""
    mlstm_conv_kernel_size: int = 4
    """Time steps covered by the causal convolution before query and key; 0 for no convolution."""
    mlstm_eps: float = 0.0
    """Constant added to the mLSTM's denominator. 0 is exact; NX-AI's models were trained with 1e-6.
    """
    slstm_ff_factor: float = 1.3
    """Inner width of the feed-forward after an sLSTM divided by embedding_dim. The width is rounded
    up to a multiple of 64; 0 for no feed-forward."""
    slstm_conv_kernel_size: int = 4
    """Time steps covered by the causal convolution before the sLSTM's input and forget gates; 0 for
    no convolution."""
    slstm_forget_gate: Literal["sigmoid", "exp"] = "sigmoid"
    """Activation of the sLSTM's forget gate. The paper allows both."""
    slstm_recurrent_init: Literal["zeros", "uniform"] = "zeros"
    """Initial recurrent weights of the sLSTM. uniform: within ±1/√D."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            positive=("mlstm_proj_factor", "mlstm_qkv_block_size"),
            not_negative=(
                "mlstm_conv_kernel_size", "mlstm_eps", "slstm_ff_factor", "slstm_conv_kernel_size",
            ),
        )  # fmt: skip

    def mlstm_inner_dim(self, embedding_dim: int) -> int:
        """E, the inner width of an mLSTM block."""
        return round_up(self.mlstm_proj_factor * embedding_dim)

    def slstm_ff_dim(self, embedding_dim: int) -> int:
        """F, the inner width of the feed-forward after an sLSTM."""
        return round_up(self.slstm_ff_factor * embedding_dim)

    def mlstm_dims(self, embedding_dim: int) -> tuple[int, int]:
        E = self.mlstm_inner_dim(embedding_dim)
        return E, E

    def check(self, layers: str, embedding_dim: int, num_heads: int) -> None:
        if "s" in layers:
            check_heads(embedding_dim, num_heads)
        if "m" in layers:
            E = self.mlstm_inner_dim(embedding_dim)
            divisors = ("num_heads", num_heads), (
                "mlstm_qkv_block_size", self.mlstm_qkv_block_size,
            )  # fmt: skip
            for name, divisor in divisors:
                require(
                    E % divisor == 0,
                    f"the mLSTM block's inner width {E} (mlstm_proj_factor × embedding_dim="
                    f"{embedding_dim}, rounded up to a multiple of 64) is not a multiple of "
                    f"{name}={divisor}",
                )


@dataclass(frozen=True, kw_only=True)
class LargeBlockConfig(BlockConfig):
    """The block of xLSTM-7B (arXiv:2503.13427, figure 1): an mLSTM and a feed-forward."""

    CELLS: ClassVar[str] = "m"
    LOGIT_SOFT_CAP: ClassVar[float] = 30.0

    kind: Literal["large"] = "large"
    """Name of the kind of block."""
    qk_dim_factor: float = 0.5
    """Width of the queries and of the keys, over all heads, divided by embedding_dim. The width is
    rounded down."""
    v_dim_factor: float = 1.0
    """Width of the values, over all heads, divided by embedding_dim. The width is rounded down."""
    ff_factor: float = 2.6667
    """Inner width of the feed-forward divided by embedding_dim. The width is rounded up to a
    multiple of ff_multiple."""
    ff_multiple: int = 64
    """The inner width of the feed-forward is a multiple of this."""
    norm_eps: float = 1e-6
    """Constant added to the mean square, or to the variance, in the norms."""
    gate_soft_cap: float = 15.0
    """Soft limit on the absolute pre-activation of the input and forget gates; 0 for no limit."""
    eps: float = 0.0
    """Constant added to the mLSTM's denominator. 0 is exact; xLSTM-7B was trained with 1e-6."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            positive=("qk_dim_factor", "v_dim_factor", "ff_factor", "ff_multiple", "norm_eps"),
            not_negative=("gate_soft_cap", "eps"),
        )

    def qk_dim(self, embedding_dim: int) -> int:
        """Width of the queries, and of the keys, of all heads together."""
        return int(self.qk_dim_factor * embedding_dim)

    def v_dim(self, embedding_dim: int) -> int:
        """Width of the values of all heads together."""
        return int(self.v_dim_factor * embedding_dim)

    def ff_dim(self, embedding_dim: int) -> int:
        """F, the inner width of the feed-forward. A factor of 2.6667 means 8/3: its excess, less
        than one channel, is cut off before the width is rounded up, as in xLSTM-7B."""
        multiple = self.ff_multiple
        return int(self.ff_factor * embedding_dim + multiple - 1) // multiple * multiple

    def mlstm_dims(self, embedding_dim: int) -> tuple[int, int]:
        return self.qk_dim(embedding_dim), self.v_dim(embedding_dim)

    def check(self, layers: str, embedding_dim: int, num_heads: int) -> None:
        for what, width in zip(("qk", "v"), self.mlstm_dims(embedding_dim), strict=True):
            require(
                width > 0 and width % num_heads == 0,
                f"{what}_dim_factor × embedding_dim={embedding_dim} is {width}, not a "
                f"multiple of num_heads={num_heads}",
            )


@dataclass(frozen=True, kw_only=True)
class BareBlockConfig(BlockConfig):
    """A cell and its projections alone, without norm and residual, as in `torch.nn.LSTM`."""

    kind: Literal["bare"] = "bare"
    """Name of the kind of block."""
    eps: float = 0.0
    """Constant added to the mLSTM's denominator; 0 is exact."""
    forget_gate: Literal["sigmoid", "exp"] = "sigmoid"
    """Activation of the sLSTM's forget gate."""
    recurrent_init: Literal["zeros", "uniform"] = "zeros"
    """Initial recurrent weights of the sLSTM. uniform: within ±1/√D."""

    def __post_init__(self) -> None:
        check_fields(self, not_negative=("eps",))

    def check(self, layers: str, embedding_dim: int, num_heads: int) -> None:
        check_heads(embedding_dim, num_heads)


def check_heads(embedding_dim: int, num_heads: int) -> None:
    """Raises UserError if the heads do not divide the width of the stack, as an sLSTM needs it."""
    require(
        embedding_dim % num_heads == 0,
        f"embedding_dim={embedding_dim} is not a multiple of num_heads={num_heads}",
    )


def round_up(width: float, multiple: int = 64) -> int:
    """`width` rounded up to a multiple of 64, the unit of the paper's inner widths."""
    return multiple * math.ceil(width / multiple)


BLOCK_CONFIGS: dict[str, type[BlockConfig]] = {
    "paper": PaperBlockConfig,
    "large": LargeBlockConfig,
    "bare": BareBlockConfig,
}


class BlockField:
    """Descriptor of the field `block`: it is set to a `BlockConfig`, to the name of a kind, which
    means its defaults, or to the table that `to_dict` writes. It is always read as a `BlockConfig`.
    """

    def __get__(self, stack: object | None, owner: type) -> BlockConfig:
        return PaperBlockConfig() if stack is None else vars(stack)["block"]

    def __set__(self, stack: object, value: BlockConfig | BlockKind | dict[str, Any]) -> None:
        vars(stack)["block"] = read_block(value)


def read_block(value: Any) -> BlockConfig:
    if isinstance(value, BlockConfig):
        return value
    kind = value.get("kind") if isinstance(value, dict) else value
    if not isinstance(kind, str) or kind not in BLOCK_CONFIGS:
        raise UserError(f"block must be {' or '.join(BLOCK_CONFIGS)}, not {kind!r}")
    return BLOCK_CONFIGS[kind].from_dict(value if isinstance(value, dict) else {})
