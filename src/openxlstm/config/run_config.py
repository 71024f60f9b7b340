"""Configurations of a run: its data, its training and its computation.

The text under each field is its documentation and the help of its command-line option.
"""

import math
from dataclasses import dataclass
from typing import Literal

from openxlstm.strict import Config, check_fields, require


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """The sources of a run, and how they are cut into batches."""

    sources: tuple[str, ...] = ("shakespeare",)
    """Text to train on: names of corpora (shakespeare, tinyshakespeare), UTF-8 files, folders or
    globs, or folders written by openxlstm tokenize. Several sources are mixed."""
    weights: tuple[float, ...] = ()
    """Share of each source in the mixture, on any scale; by default its share of all tokens."""
    field: str = "text"
    """Field of .jsonl and .parquet files that holds the text."""
    tokenizer: str = "char"
    """Unit of text. char: the characters of the text. byte: UTF-8 bytes. bpe: pieces of words,
    learned from the text. Or the path of a tokenizer to use."""
    bpe_vocab_size: int = 4096
    """Size of the vocabulary that bpe learns."""
    val_fraction: float = 0.1
    """Share of each source that is held out for validation."""
    val_split: Literal["first", "last"] = "last"
    """End of each source that is held out for validation."""
    sampling: Literal["windows", "streams"] = "windows"
    """windows: sequences start at random places, from an empty state. streams: each row of a batch
    continues where it stopped in the batch before, and keeps its state."""
    batch_size: int = 16
    """Sequences per batch, B, over all processes."""
    window: int = 64
    """Tokens per sequence in a training step, T."""
    first_window: int | None = None
    """Tokens per sequence when the run starts. The number doubles at equal intervals until it is
    the window; by default it is the window from the start."""
    eval_window: int | None = None
    """Tokens per sequence when the run evaluates; by default the window."""
    reset_at_documents: bool = True
    """Empty the state where a document, i.e. a file or a play, begins."""

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
        check_fields(self, positive=("batch_size", "window", "eval_window"))
        require(
            self.first_window is None or 0 < self.first_window <= self.window,
            f"first_window must be from 1 to window={self.window}, not {self.first_window}",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a model is trained."""

    steps: int | None = None
    """Length of the run in optimizer steps. With several lengths, the shortest ends the run."""
    tokens: int | None = None
    """Length of the run in training tokens."""
    minutes: float | None = None
    """Length of the run in minutes, evaluations included."""
    seed: int = 0
    """Seed of the weights, the batches and dropout."""
    learning_rate: float = 3e-3
    """Highest learning rate of the schedule."""
    min_learning_rate: float = 0.0
    """Learning rate at which the schedule ends."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Decay of the learning rate after warm-up."""
    warmup: float = 0.02
    """Share of the run during which the learning rate rises from 0."""
    decay_steps: int | None = None
    """Steps of one decay; by default the whole run. With cosine, the rate rises again afterwards,
    as with torch's CosineAnnealingLR."""
    weight_decay: float = 0.1
    """Weight decay of AdamW on projection matrices. Norms, biases, recurrent weights and embeddings
    are not decayed."""
    beta1: float = 0.9
    """Decay rate of AdamW's first moment."""
    beta2: float = 0.95
    """Decay rate of AdamW's second moment."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of all weights; a larger one is scaled down. 0 for no limit."""
    ema_decay: float = 0.0
    """Decay rate per step of an exponential moving average of the weights, which is then evaluated
    and saved in their place; 0 for no average."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """Reaction to a loss or gradient that is infinite or NaN. stop: end the run. skip: skip the
    step."""
    eval_every: int = 200
    """Steps between evaluations."""
    eval_batches: int = 20
    """Batches per evaluation, from the training and from the validation text each; the same
    batches every time."""
    save_every: int | None = None
    """Steps between checkpoints; by default one with each evaluation."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep, beside the best model."""

    def __post_init__(self) -> None:
        require(
            any(length is not None for length in (self.steps, self.tokens, self.minutes)),
            "how long to train is not said; give steps, tokens or minutes",
        )
        check_fields(
            self,
            positive=(
                "steps", "tokens", "minutes", "learning_rate", "decay_steps", "eval_every",
                "eval_batches", "save_every", "keep_checkpoints",
            ),
            not_negative=("min_learning_rate", "weight_decay"),
            shares=("warmup", "beta1", "beta2", "ema_decay"),
        )  # fmt: skip
        require(
            self.min_learning_rate <= self.learning_rate,
            f"min_learning_rate={self.min_learning_rate} is more than learning_rate="
            f"{self.learning_rate}",
        )
        require(
            self.clip_norm >= 0, f"clip_norm must be 0 (no limit) or more, not {self.clip_norm}"
        )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Config):
    """How a run is computed. These options change its results by rounding only, so a run can be
    resumed with others, e.g. on another machine or on more of them."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """With several processes. ddp: each holds the whole model (arXiv:2006.15704). fsdp: weights,
    gradients and optimizer are sharded, and gathered block by block (arXiv:2304.11277)."""
    accumulate: int = 1
    """Micro-batches per step: a process computes its share of a batch in this many parts, which
    saves memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products. bfloat16 uses torch's autocast; weights and states stay in
    float32."""
    recompute_blocks: bool = False
    """Recompute each block in the backward pass (activation checkpointing, arXiv:1604.06174): less
    memory for about a third more time."""
    compile: bool = False
    """Let torch.compile fuse the operations between openxlstm's own operators, block by block."""

    def __post_init__(self) -> None:
        check_fields(self, positive=("accumulate",))
