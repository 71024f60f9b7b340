"""Every choice that a run is made of, as frozen dataclasses: what the model is, what it reads and
how it is trained. Plain Python, so that reading a configuration never imports torch.

The line under each field is its documentation.
"""

import math
from dataclasses import dataclass
from typing import Literal

from openxlstm.strict import Config, require

LAYER_KINDS = {"s": "sLSTM", "m": "mLSTM"}


@dataclass(frozen=True, kw_only=True)
class StackConfig(Config):
    """A stack of xLSTM blocks (arXiv:2405.04517, sections 2.4 and 4; arXiv:2503.13427, section 3).

    Fields that begin with mlstm_ and slstm_ are about the paper's blocks, those that begin with
    large_ about large ones; the rest is about both.
    """

    embedding_dim: int = 128
    """Width of the residual stream, D."""
    layers: str = "ms"
    """One letter a block, from the input up: s for sLSTM, m for mLSTM."""
    num_heads: int = 4
    """Heads of every cell. An sLSTM divides embedding_dim among them, an mLSTM its inner width, a
    large block's mLSTM the widths of its keys and values."""
    block: Literal["paper", "large", "bare"] = "paper"
    """The kind of block around a cell. paper: those of arXiv:2405.04517, figures 10 and 11. large:
    that of xLSTM-7B (arXiv:2503.13427, figure 1), an mLSTM and a feed-forward, no sLSTM. bare: the
    cell and its projections alone, as a layer of `torch.nn.LSTM` is; for `openxlstm.XLSTM`."""
    bias: bool = False
    """Biases in the projections and feed-forwards, and in the norms of large blocks. The gates of
    an mLSTM or sLSTM always have them."""
    final_norm: bool = True
    """Whether a norm stands after the last block; bare blocks have none in any case."""
    dropout: float = 0.0
    """Share of each sub-layer's output that is dropped in training."""
    dropout_kind: Literal["elements", "channels"] = "elements"
    """elements: each number by itself. channels: a sequence loses the same channels at every step
    (arXiv:1512.05287), which is cheaper and leaves a memory what it had learned to hold."""
    mlstm_proj_factor: float = 2.0
    """Inner width of an mLSTM block over embedding_dim, rounded up to a multiple of 64."""
    mlstm_qkv_block_size: int = 4
    """Side of the diagonal blocks of the query, key and value projections."""
    mlstm_conv_kernel_size: int = 4
    """Steps that the causal convolution before query and key sees; 0 leaves it out."""
    mlstm_eps: float = 0.0
    """Added to the mLSTM's denominator, in large blocks too: 0 is exact; some checkpoints, xLSTM-7B
    among them, were trained with 1e-6."""
    slstm_ff_factor: float = 1.3
    """Width of the feed-forward after an sLSTM over embedding_dim, rounded up to a multiple of 64;
    0 leaves it out."""
    slstm_conv_kernel_size: int = 4
    """Steps that the causal convolution before the input and forget gates sees; 0 leaves it out."""
    slstm_forget_gate: Literal["sigmoid", "exp"] = "sigmoid"
    """Activation of the sLSTM's forget gate; the paper allows both."""
    slstm_recurrent_init: Literal["zeros", "uniform"] = "zeros"
    """How recurrent weights start: at 0, or uniform within ±1/√embedding_dim."""
    large_qk_dim_factor: float = 0.5
    """Width of queries and keys over embedding_dim, rounded down."""
    large_v_dim_factor: float = 1.0
    """Width of values over embedding_dim, rounded down."""
    large_ff_factor: float = 2.6667
    """Width of the feed-forward over embedding_dim; the next large_ff_multiple is taken."""
    large_ff_multiple: int = 64
    """What the width of the feed-forward is a multiple of."""
    large_norm_eps: float = 1e-6
    """Added to the mean square, or variance, in the norms of large blocks."""
    large_gate_soft_cap: float = 15.0
    """Pre-activations of the input and forget gates stay within ± this, softly; 0 for no limit."""

    def __post_init__(self) -> None:
        letters = sorted(set(self.layers) - set(LAYER_KINDS))
        require(
            not letters,
            f"layers={self.layers!r} has the unknown letter {letters[0] if letters else ''!r}; "
            "use s (sLSTM) and m (mLSTM), e.g. 'msm'",
        )
        require(bool(self.layers), "layers is empty; name at least one block, e.g. 'ms'")
        require(self.embedding_dim > 0, f"embedding_dim must be positive, not {self.embedding_dim}")
        require(self.num_heads > 0, f"num_heads must be positive, not {self.num_heads}")
        for name in ("mlstm_conv_kernel_size", "slstm_conv_kernel_size"):
            require(
                getattr(self, name) >= 0, f"{name} must be 0 or more, not {getattr(self, name)}"
            )
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), not {self.dropout}")
        require(0 <= self.slstm_ff_factor < math.inf, "slstm_ff_factor must be 0 or more")
        require(0 < self.mlstm_proj_factor < math.inf, "mlstm_proj_factor must be positive")
        require(0 <= self.mlstm_eps < math.inf, "mlstm_eps must be 0 or more")
        require(self.mlstm_qkv_block_size > 0, "mlstm_qkv_block_size must be positive")
        for name in ("large_qk_dim_factor", "large_v_dim_factor", "large_ff_factor"):
            require(0 < getattr(self, name) < math.inf, f"{name} must be positive")
        require(0 <= self.large_gate_soft_cap < math.inf, "large_gate_soft_cap must be 0 or more")
        require(self.large_ff_multiple > 0, "large_ff_multiple must be positive")
        require(0 < self.large_norm_eps < math.inf, "large_norm_eps must be positive")
        match self.block:
            case "paper":
                self._check_paper()
            case "large":
                self._check_large()
            case "bare":
                self._check_bare()

    def _check_large(self) -> None:
        require(
            "s" not in self.layers,
            f"block='large' has no sLSTM, and layers={self.layers!r} asks for one; use m alone, "
            f"e.g. {'m' * len(self.layers)!r}",
        )
        for what, width in (("qk", self.large_qk_dim), ("v", self.large_v_dim)):
            require(
                width > 0 and width % self.num_heads == 0,
                f"large_{what}_dim_factor × embedding_dim={self.embedding_dim} is {width}, not a "
                f"multiple of num_heads={self.num_heads}",
            )

    def _check_bare(self) -> None:
        require(
            self.embedding_dim % self.num_heads == 0,
            f"embedding_dim={self.embedding_dim} is not a multiple of num_heads={self.num_heads}",
        )

    def _check_paper(self) -> None:
        if "s" in self.layers:
            require(
                self.embedding_dim % self.num_heads == 0,
                f"embedding_dim={self.embedding_dim} is not a multiple of "
                f"num_heads={self.num_heads}, which an sLSTM block needs",
            )
        if "m" in self.layers:
            for name in ("num_heads", "mlstm_qkv_block_size"):
                require(
                    self.mlstm_inner_dim % getattr(self, name) == 0,
                    f"the mLSTM block's inner width {self.mlstm_inner_dim} (mlstm_proj_factor × "
                    f"embedding_dim={self.embedding_dim}, rounded up to a multiple of 64) is not a "
                    f"multiple of {name}={getattr(self, name)}",
                )

    @property
    def mlstm_inner_dim(self) -> int:
        """E, the width inside an mLSTM block."""
        return round_up(self.mlstm_proj_factor * self.embedding_dim)

    @property
    def slstm_ff_dim(self) -> int:
        """F, the width inside the feed-forward after an sLSTM."""
        return round_up(self.slstm_ff_factor * self.embedding_dim)

    @property
    def large_qk_dim(self) -> int:
        """Width of the queries, and of the keys, of all heads of a large block."""
        return int(self.large_qk_dim_factor * self.embedding_dim)

    @property
    def large_v_dim(self) -> int:
        """Width of the values of all heads of a large block."""
        return int(self.large_v_dim_factor * self.embedding_dim)

    @property
    def large_ff_dim(self) -> int:
        """F, the width inside the feed-forward of a large block. A factor of 2.6667 is meant to be
        8/3: what it has too much, up to one channel, is rounded off first, as xLSTM-7B does."""
        multiple = self.large_ff_multiple
        return int(self.large_ff_factor * self.embedding_dim + multiple - 1) // multiple * multiple

    @property
    def mlstm_head_dims(self) -> tuple[int, int]:
        """DQK and DHV, the widths of a key and of a value in a head of an mLSTM."""
        E = self.mlstm_inner_dim
        widths = (self.large_qk_dim, self.large_v_dim) if self.block == "large" else (E, E)
        return widths[0] // self.num_heads, widths[1] // self.num_heads


def round_up(width: float, multiple: int = 64) -> int:
    """`width` rounded up to a multiple of 64, the unit of the paper's inner widths."""
    return multiple * math.ceil(width / multiple)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StackConfig):
    """A language model: embedding, stack, norm, head."""

    vocab_size: int
    """Number of different tokens."""
    num_positions: int = 0
    """Rows of a learned position embedding; 0 for none, which a recurrent model does well with.
    The last row stands for every later position, so that nothing limits the length."""
    tie_weights: bool = False
    """One matrix for the token embedding and the head."""
    embedding_dropout: float = 0.0
    """Share of the embedding that is dropped in training."""
    large_logit_soft_cap: float = 30.0
    """Logits of a model of large blocks stay within ± this, softly; 0 for no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.block != "bare",
            "block='bare' has no norms and residuals, which a language model needs; use 'paper'",
        )
        require(self.vocab_size > 0, f"vocab_size must be positive, not {self.vocab_size}")
        require(self.num_positions >= 0, "num_positions must be 0 (none) or more")
        require(0 <= self.embedding_dropout < 1, "embedding_dropout must be in [0, 1)")
        require(0 <= self.large_logit_soft_cap < math.inf, "large_logit_soft_cap must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What a run reads, and how it is cut into batches."""

    sources: tuple[str, ...] = ("shakespeare",)
    """What is mixed: each a corpus by name, a file, a folder or a glob of text, or a folder that
    `openxlstm tokenize` made."""
    weights: tuple[float, ...] = ()
    """The share of each source in what is trained on, on any scale; empty for shares by tokens."""
    field: str = "text"
    """The field of .jsonl and .parquet files that holds the text."""
    tokenizer: str = "char"
    """The unit of text: char, the characters that occur in it; byte, those of UTF-8; bpe, pieces of
    words learned from it; or the path of a tokenizer to use."""
    bpe_vocab_size: int = 4096
    """Number of different tokens that bpe learns."""
    val_fraction: float = 0.1
    """Share of each source that is held out."""
    val_split: Literal["first", "last"] = "last"
    """Which end of each source is held out."""
    sampling: Literal["windows", "streams"] = "windows"
    """windows: random places, each from an empty state. streams: each row of a batch reads on
    where it stopped, and the state is carried."""
    batch_size: int = 16
    """Sequences in a batch, B."""
    window: int = 64
    """Tokens of a sequence in one training step, T."""
    first_window: int | None = None
    """Tokens of a sequence when the run starts; doubled at equal shares of it, up to `window`."""
    eval_window: int | None = None
    """Tokens of a sequence in the evaluations of a run; None for `window`."""
    reset_at_documents: bool = True
    """Whether the state is emptied where a document (a file, a play) begins."""

    def __post_init__(self) -> None:
        require(bool(self.sources), "there is nothing to read: name at least one source")
        require(
            len(self.weights) in (0, len(self.sources)),
            f"there are {len(self.weights)} weights for {len(self.sources)} sources: "
            "give one for each, or none",
        )
        require(
            all(0 < weight < math.inf for weight in self.weights),
            f"weights must be positive, not {', '.join(map(str, self.weights))}",
        )
        require(
            self.bpe_vocab_size > 256,  # there is a token for each byte
            f"bpe_vocab_size must be more than 256, not {self.bpe_vocab_size}",
        )
        require(
            0 < self.val_fraction < 1, f"val_fraction must be in (0, 1), not {self.val_fraction}"
        )
        require(self.batch_size > 0, f"batch_size must be positive, not {self.batch_size}")
        require(self.window > 0, f"window must be positive, not {self.window}")
        require(
            self.first_window is None or 0 < self.first_window <= self.window,
            f"first_window must be from 1 to window={self.window}, not {self.first_window}",
        )
        require(
            self.eval_window is None or self.eval_window > 0,
            f"eval_window must be positive, not {self.eval_window}",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained."""

    steps: int | None = None
    """Length of the run in optimizer steps. Of several lengths, what comes first ends it."""
    tokens: int | None = None
    """Length of the run in tokens trained on."""
    minutes: float | None = None
    """Length of the run in minutes of the clock, evaluations included."""
    seed: int = 0
    """Seed of the weights, the batches and dropout."""
    learning_rate: float = 3e-3
    """Highest rate of the schedule."""
    min_learning_rate: float = 0.0
    """Rate at which the schedule ends."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the decay after warm-up."""
    warmup: float = 0.02
    """Share of the run over which the rate rises from 0."""
    decay_steps: int | None = None
    """Steps of one decay, instead of the whole run. A cosine rises again after it, as
    torch's CosineAnnealingLR does."""
    weight_decay: float = 0.1
    """AdamW's decay of projection matrices; norms, biases, gates' biases, recurrent weights and
    embeddings have none."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient; 0 for no limit."""
    ema_decay: float = 0.0
    """Share that an exponential moving average of the weights keeps at each step; it is then what
    is evaluated and saved. 0 for none."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is no number does: end the run, or leave that step out."""
    eval_every: int = 200
    """Steps between evaluations."""
    eval_batches: int = 20
    """Batches an evaluation takes from each of train and val: the same ones every time."""
    save_every: int | None = None
    """Steps between checkpoints; None for one with each evaluation."""
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept. The best model is kept besides."""

    def __post_init__(self) -> None:
        require(
            any(length is not None for length in (self.steps, self.tokens, self.minutes)),
            "how long to train is not said; give steps, tokens or minutes",
        )
        require(self.steps is None or self.steps > 0, f"steps must be positive, not {self.steps}")
        require(
            self.tokens is None or self.tokens > 0, f"tokens must be positive, not {self.tokens}"
        )
        require(
            self.minutes is None or (self.minutes > 0 and math.isfinite(self.minutes)),
            f"minutes must be positive, not {self.minutes}",
        )
        require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate),
            f"learning_rate must be positive, not {self.learning_rate}",
        )
        require(
            0 <= self.min_learning_rate <= self.learning_rate, "min_learning_rate is out of range"
        )
        require(0 <= self.warmup < 1, f"warmup must be in [0, 1), not {self.warmup}")
        require(self.decay_steps is None or self.decay_steps > 0, "decay_steps must be positive")
        require(0 <= self.weight_decay < math.inf, "weight_decay must be 0 or more")
        require(0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, "beta1 and beta2 must be in [0, 1)")
        require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), not {self.ema_decay}")
        require(self.clip_norm >= 0, "clip_norm must be 0 (no limit) or more")
        require(self.eval_every > 0, f"eval_every must be positive, not {self.eval_every}")
        require(self.eval_batches > 0, f"eval_batches must be positive, not {self.eval_batches}")
        require(
            self.save_every is None or self.save_every > 0,
            f"save_every must be positive, not {self.save_every}",
        )
        require(
            self.keep_checkpoints > 0,
            f"keep_checkpoints must be 1 or more, not {self.keep_checkpoints}",
        )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Config):
    """How a run is computed. Nothing here changes what it learns, but for rounding, so that a run
    may be resumed with other choices: on another machine, or on more of them."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Among several processes. ddp: each holds the whole model (arXiv:2006.15704). fsdp: weights,
    gradients and optimizer are dealt out, and put together block by block (arXiv:2304.11277)."""
    accumulate: int = 1
    """Parts that a process computes its share of a batch in, one after another."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products: bfloat16 is torch's autocast. Weights and states stay in float32."""
    recompute_blocks: bool = False
    """Keep the input of each block alone, and compute the block again when its gradient is due:
    less memory for about a third more time (activation checkpointing, arXiv:1604.06174)."""
    compile: bool = False
    """Let torch.compile fuse what is between openxlstm's own operators, block by block."""

    def __post_init__(self) -> None:
        require(self.accumulate > 0, f"accumulate must be positive, not {self.accumulate}")
