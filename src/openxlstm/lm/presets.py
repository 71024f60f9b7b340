"""Whole recipes by name: a model, what it reads, how it is trained. Imports no torch."""

from dataclasses import dataclass

from openxlstm.config import DataConfig, ModelConfig, TrainConfig
from openxlstm.errors import UserError

CHARACTERS = 65
"""Stands in a preset's vocab_size until a tokenizer says better: Tiny Shakespeare's alphabet."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A recipe."""

    about: str
    """What it is for, in a line."""
    model: ModelConfig
    data: DataConfig
    train: TrainConfig


PRESETS = {
    "demo": Preset(
        about="two minutes on two CPU cores: learns the shape and many words of a play",
        model=ModelConfig(vocab_size=CHARACTERS, embedding_dim=128, layers="ms", num_heads=4),
        data=DataConfig(source="shakespeare", batch_size=12, window=64),
        train=TrainConfig(minutes=2.0, learning_rate=4e-3, eval_every=250),
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
            source="tinyshakespeare",
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
