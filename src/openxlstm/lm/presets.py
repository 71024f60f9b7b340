"""Whole recipes by name: a model, what it reads, how it is trained. Imports no torch."""

from dataclasses import dataclass

from openxlstm.config import (
    ComputeConfig,
    DataConfig,
    LargeBlockConfig,
    ModelConfig,
    PaperBlockConfig,
    TrainConfig,
)
from openxlstm.errors import UserError

CHARACTERS = 65
"""Stands in a preset's vocab_size until a tokenizer says better: Tiny Shakespeare's alphabet."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Results of a recipe on two cores of a Zen 5: the median of some seeds.

    Losses are in nats a token, over the whole held-out part.
    """

    minutes: float
    """Time on the clock, evaluations included."""
    windows_of_64: float
    """Loss on windows side by side that each start from an empty state."""
    windows_of_256: float
    stream: float
    """Loss where the state is carried from start to end."""
    train: float
    """Loss on what was trained on, in windows of 256."""
    seeds: int = 3
    """Runs that the figures are the median of."""
    tokens_per_second: float | None = None
    """Tokens trained on over the time of the run, where that was noted."""


@dataclass(frozen=True, kw_only=True)
class Reported:
    """How those who made a recipe ran it, as they say; nobody ran it here."""

    source: str
    """Where they say so."""
    device: str
    """The device of each rank."""
    world_size: int
    """Number of ranks."""
    tokens_per_second: float
    """Total over all ranks."""
    compute: ComputeConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe."""

    about: str
    """Its purpose, in one line."""
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    measured: Measured | None = None
    """Its measured results; None where it was never run here."""
    reported: Reported | None = None


PRESETS = {
    "demo": Preset(
        about="two minutes on two CPU cores: learns the shape and many words of a play",
        model=ModelConfig(vocab_size=CHARACTERS, embedding_dim=128, layers="ms", num_heads=4),
        data=DataConfig(sources=("shakespeare",), batch_size=24, window=64),
        train=TrainConfig(
            minutes=2.0,
            learning_rate=5e-3,
            schedule="cosine",
            weight_decay=0.3,
            beta2=0.99,
            eval_every=250,
        ),
        measured=Measured(
            minutes=2.0, windows_of_64=1.485, windows_of_256=1.452, stream=1.440, train=1.321
        ),
    ),
    "fast": Preset(
        about="the time of nanoGPT's recipe for a CPU",
        model=ModelConfig(
            vocab_size=CHARACTERS,
            embedding_dim=192,
            layers="ss",
            num_heads=4,
            block=PaperBlockConfig(slstm_conv_kernel_size=0),
        ),
        data=DataConfig(sources=("tinyshakespeare",), batch_size=24, window=64),
        train=TrainConfig(
            minutes=98 / 60,
            learning_rate=4e-3,
            schedule="cosine",
            weight_decay=0.4,
            beta2=0.99,
            eval_every=250,
        ),
        measured=Measured(
            minutes=98 / 60, windows_of_64=1.480, windows_of_256=1.446, stream=1.435, train=1.190
        ),
    ),
    "best": Preset(
        about="better on windows of 256 than nanoGPT on a GPU, with a fifteenth of its parameters",
        model=ModelConfig(
            vocab_size=CHARACTERS,
            embedding_dim=192,
            layers="sss",
            num_heads=4,
            block=PaperBlockConfig(slstm_conv_kernel_size=0),
            dropout=0.05,
            embedding_dropout=0.05,
            dropout_kind="channels",
        ),
        data=DataConfig(sources=("tinyshakespeare",), batch_size=16, window=128, eval_window=256),
        train=TrainConfig(
            minutes=8.0,
            learning_rate=3e-3,
            schedule="cosine",
            weight_decay=0.6,
            beta2=0.99,
            eval_every=500,
        ),
        measured=Measured(
            minutes=8.0,
            windows_of_64=1.453,
            windows_of_256=1.401,
            stream=1.384,
            train=1.050,
            tokens_per_second=55_000,  # docs/lab-notes.md
        ),
    ),
    "article": Preset(
        about="the article's hyperparameters, with the cosine schedule that it never stepped",
        model=ModelConfig(
            vocab_size=CHARACTERS,
            embedding_dim=164,
            layers="m",
            num_heads=8,
            num_positions=124,
        ),
        data=DataConfig(
            sources=("tinyshakespeare",),
            val_split="first",
            batch_size=24,
            window=124,
        ),
        train=TrainConfig(
            steps=80_000 // 24,
            learning_rate=3e-4,
            min_learning_rate=1e-5,
            schedule="cosine",
            decay_steps=300,
            warmup=0.0,
            weight_decay=0.01,
            beta2=0.999,
            clip_norm=0.0,
            eval_every=100,
            eval_batches=3,
        ),
        measured=Measured(
            minutes=2.2,
            windows_of_64=1.719,
            windows_of_256=1.729,
            stream=1.750,
            train=1.626,
            seeds=1,
        ),
    ),
    "xlstm-7b": Preset(
        about="the 7B model of arXiv:2503.13427, to plan with: never trained here",
        model=ModelConfig(
            vocab_size=50304,  # GPT-NeoX's 50257 tokens, rounded up to a multiple of 64
            embedding_dim=4096,
            layers="m" * 32,
            num_heads=8,
            block=LargeBlockConfig(eps=1e-6),
        ),
        data=DataConfig(sources=("dclm",), batch_size=512, window=8192),
        train=TrainConfig(  # appendix B; its rate decays exponentially, and is then cooled to 0
            steps=550_000,
            learning_rate=5e-4,
            min_learning_rate=5e-5,
            schedule="cosine",
            warmup=3000 / 550_000,
            beta1=0.99,
            beta2=0.95,
            weight_decay=0.1,
            clip_norm=0.5,
        ),
        reported=Reported(
            source="arXiv:2503.13427",  # table 2: 9.15 thousand tokens/s a GPU; appendix B
            device="NVIDIA H100",
            world_size=128,
            tokens_per_second=128 * 9150,
            compute=ComputeConfig(strategy="fsdp", precision="bfloat16", recompute_blocks=True),
        ),
    ),
}


def get_preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UserError: if there is none.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return PRESETS[name]
