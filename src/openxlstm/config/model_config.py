"""Configurations of a stack of blocks and of a language model."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from openxlstm.config.blocks import BLOCK_CONFIGS, BlockField, read_block
from openxlstm.errors import UserError
from openxlstm.strict import Config, check_fields, require

LAYER_KINDS = {"s": "sLSTM", "m": "mLSTM"}


@dataclass(frozen=True, kw_only=True)
class StackConfig(Config):
    """A stack of xLSTM blocks (arXiv:2405.04517, sections 2.4 and 4; arXiv:2503.13427, sec. 3)."""

    embedding_dim: int = 128
    """Width of the residual stream, D."""
    layers: str = "ms"
    """Cell of each block, from input to output: s for sLSTM, m for mLSTM, e.g. msm."""
    num_heads: int = 4
    """Heads of every cell. They divide embedding_dim in an sLSTM, the inner width in an mLSTM, and
    the widths of keys and values in a large block."""
    block: BlockField = BlockField()  # noqa: RUF009 - a descriptor
    """Kind of block around each cell. paper: those of arXiv:2405.04517. large: that of xLSTM-7B,
    for m only. openxlstm.XLSTM also takes bare: the cell and its projections alone."""
    bias: bool = False
    """Add biases to projections and feed-forwards, and to the norms of large blocks. Gates always
    have biases."""
    final_norm: bool = True
    """Add a norm after the last block. Bare blocks never have one."""
    dropout: float = 0.0
    """Probability that an element of a sub-layer's output is dropped in training."""
    dropout_kind: Literal["elements", "channels"] = "elements"
    """elements: drop each number independently. channels: drop the same channels of a sequence at
    every time step, which is cheaper (arXiv:1512.05287)."""

    def __post_init__(self) -> None:
        letters = sorted(set(self.layers) - set(LAYER_KINDS))
        require(
            not letters,
            f"layers={self.layers!r} has the unknown letter {letters[0] if letters else ''!r}; "
            "use s (sLSTM) and m (mLSTM), e.g. 'msm'",
        )
        require(bool(self.layers), "layers is empty; name at least one block, e.g. 'ms'")
        check_fields(self, positive=("embedding_dim", "num_heads"), shares=("dropout",))
        for letter in sorted(set(self.layers) - set(self.block.CELLS)):
            cells = self.block.CELLS
            raise UserError(
                f"block={self.block.kind!r} has no {LAYER_KINDS[letter]}, and layers="
                f"{self.layers!r} asks for one; use {cells} alone, e.g. "
                f"{cells[0] * len(self.layers)!r}"
            )
        self.block.check(self.layers, self.embedding_dim, self.num_heads)

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """The configuration of flat options: those that are fields of the block go to the block.

            StackConfig.from_options(layers="m", block="large", qk_dim_factor=1.0)

        Raises:
            UserError: on an option that neither the class nor the chosen kind of block has, on a
                value of the wrong type, or on sizes that do not fit together.
        """
        block = read_block(options.pop("block", "paper"))
        fields = block.names()[1:]  # without kind
        inner = {name: options.pop(name) for name in fields if name in options}
        for name in sorted(set(options) - set(cls.names())):
            kinds = [kind for kind, other in BLOCK_CONFIGS.items() if name in other.names()]
            where = " and ".join(f"block={kind!r}" for kind in kinds)
            raise UserError(
                f"{cls.__name__} has no option {name!r}"
                + (f" with block={block.kind!r}: it belongs to {where}" if kinds else "")
                + f"; it has: {', '.join((*cls.names(), *fields))}"
            )
        return cls.from_dict({**options, "block": {**block.to_dict(), **inner}})

    def replace(self, **changes: Any) -> Self:
        """A copy with some options changed, checked like a new one. Options of the block may be
        given like those of the stack. A new kind of block starts from its defaults."""
        values = {name: getattr(self, name) for name in self.names()}
        if changes.get("block") == self.block.kind:
            del changes["block"]
        return self.from_options(**{**values, **changes})

    @property
    def mlstm_head_dims(self) -> tuple[int, int]:
        """DQK and DHV, the widths of a key and of a value in one head of an mLSTM."""
        key_dim, value_dim = self.block.mlstm_dims(self.embedding_dim)
        return key_dim // self.num_heads, value_dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StackConfig):
    """A language model: embedding, stack, norm and head."""

    vocab_size: int
    """Number of tokens in the vocabulary, V."""
    num_positions: int = 0
    """Rows of a learned position embedding; 0 for none, which suits a recurrent model. Later
    positions all use the last row, so the length of a sequence is not limited."""
    tie_weights: bool = False
    """Use one matrix for the token embedding and the head."""
    embedding_dropout: float = 0.0
    """Probability that an element of the embedding is dropped in training."""
    logit_soft_cap: float | None = None
    """Soft limit on the absolute value of the logits; 0 for no limit. By default it is that of the
    block: 30 for large blocks, 0 for the paper's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.block.kind != "bare",
            "block='bare' has no norms and residuals, which a language model needs; use 'paper'",
        )
        if self.logit_soft_cap is None:
            object.__setattr__(self, "logit_soft_cap", self.block.LOGIT_SOFT_CAP)
        check_fields(
            self, positive=("vocab_size",), not_negative=("num_positions", "logit_soft_cap"),
            shares=("embedding_dropout",),
        )  # fmt: skip

    def replace(self, **changes: Any) -> Self:
        if read_block(changes.get("block", self.block)).kind != self.block.kind:
            changes.setdefault("logit_soft_cap", None)
        return super().replace(**changes)
