"""Configurations: what is accepted, what is refused, and in which words."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.config import (
    BareBlockConfig,
    DataConfig,
    LargeBlockConfig,
    ModelConfig,
    PaperBlockConfig,
    StackConfig,
    TrainConfig,
    round_up,
)
from openxlstm.errors import UserError
from openxlstm.runs.run_folder import RunRecord
from openxlstm.strict import Config

NEEDED: dict[type[Config], dict[str, Any]] = {
    PaperBlockConfig: {},
    LargeBlockConfig: {},
    BareBlockConfig: {},
    StackConfig: {},
    ModelConfig: {"vocab_size": 65},
    DataConfig: {},
    TrainConfig: {"steps": 10},
    RunRecord: {"openxlstm": "1", "preset": "demo", "data": {}, "train": {}, "text_sha256": "0"},
}
"""Every class, with what it cannot do without."""


@pytest.mark.parametrize("kind", NEEDED)
def test_round_trip_by_json(kind: type[Config]) -> None:
    config = kind.from_dict(NEEDED[kind])
    again = kind.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert tuple(config.to_dict()) == kind.names()


@given(
    head_dim=st.integers(1, 40),
    num_heads=st.sampled_from([1, 2, 4, 8]),
    layers=st.text("ms", min_size=1, max_size=5),
    dropout=st.floats(0, 1, exclude_max=True),
    tie_weights=st.booleans(),
)
def test_what_is_accepted_comes_back(head_dim: int, num_heads: int, **options: Any) -> None:
    config = ModelConfig.from_options(
        vocab_size=9, embedding_dim=head_dim * num_heads, num_heads=num_heads, **options
    )
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("kind", NEEDED)
def test_an_unknown_key_is_refused(kind: type[Config]) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__} has no option 'bogus'; it has: "):
        kind.from_dict({**NEEDED[kind], "bogus": 1})


@pytest.mark.parametrize("kind", [ModelConfig, RunRecord])
def test_a_missing_key_is_named(kind: type[Config]) -> None:
    for name in NEEDED[kind]:
        values = {key: value for key, value in NEEDED[kind].items() if key != name}
        with pytest.raises(UserError, match=f"{kind.__name__} lacks '{name}'"):
            kind.from_dict(values)


@pytest.mark.parametrize("values", [None, 3, "x", ["vocab_size"]], ids=repr)
def test_something_else_than_a_table_is_refused(values: Any) -> None:
    with pytest.raises(UserError, match="needs a table"):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (StackConfig, "embedding_dim", 16.0),
        (StackConfig, "embedding_dim", "16"),
        (StackConfig, "embedding_dim", True),
        (StackConfig, "embedding_dim", None),
        (StackConfig, "layers", ["m"]),
        (StackConfig, "layers", 3),
        (StackConfig, "bias", 1),
        (StackConfig, "dropout", "0"),
        (StackConfig, "dropout", True),
        (StackConfig, "dropout", 10**400),
        (StackConfig, "block", "large"),
        (StackConfig, "block", ["paper"]),
        (PaperBlockConfig, "slstm_forget_gate", "tanh"),
        (DataConfig, "tokenizer", 3),
        (DataConfig, "sources", "shakespeare"),
        (DataConfig, "sources", [3]),
        (DataConfig, "weights", ["1"]),
        (DataConfig, "val_split", None),
        (TrainConfig, "steps", 1.5),
        (TrainConfig, "minutes", "2"),
        (RunRecord, "data", []),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(kind: type[Config], name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        kind.from_dict({**NEEDED[kind], name: value})


def test_whole_numbers_do_for_fractions() -> None:
    """JSON writes 1.0 as it likes; and None where it is allowed."""
    config = TrainConfig.from_dict({"steps": None, "minutes": 2, "clip_norm": 0})
    assert config.minutes == 2.0
    assert isinstance(config.minutes, float)
    assert isinstance(config.clip_norm, float)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (StackConfig, {"layers": "mxs"}, "unknown letter 'x'"),
        (StackConfig, {"layers": "M"}, "unknown letter 'M'"),
        (StackConfig, {"layers": ""}, "layers is empty"),
        (StackConfig, {"embedding_dim": 0}, "embedding_dim must be positive"),
        (StackConfig, {"num_heads": 0}, "num_heads must be positive"),
        (
            PaperBlockConfig,
            {"mlstm_conv_kernel_size": -1},
            "mlstm_conv_kernel_size must be 0",
        ),
        (
            PaperBlockConfig,
            {"slstm_conv_kernel_size": -1},
            "slstm_conv_kernel_size must be 0",
        ),
        (StackConfig, {"dropout": 1.0}, "dropout must be in"),
        (StackConfig, {"dropout": math.nan}, "dropout must be in"),
        (PaperBlockConfig, {"slstm_ff_factor": -1.0}, "slstm_ff_factor"),
        (PaperBlockConfig, {"slstm_ff_factor": math.inf}, "slstm_ff_factor"),
        (PaperBlockConfig, {"mlstm_proj_factor": 0.0}, "mlstm_proj_factor"),
        (PaperBlockConfig, {"mlstm_proj_factor": math.inf}, "mlstm_proj_factor"),
        (PaperBlockConfig, {"mlstm_proj_factor": math.nan}, "mlstm_proj_factor"),
        (PaperBlockConfig, {"mlstm_eps": -1e-6}, "mlstm_eps"),
        (LargeBlockConfig, {"norm_eps": 0.0}, "norm_eps must be positive"),
        (LargeBlockConfig, {"ff_multiple": 0}, "ff_multiple must be positive"),
        (PaperBlockConfig, {"mlstm_qkv_block_size": 0}, "mlstm_qkv_block_size must be positive"),
        (StackConfig, {"embedding_dim": 10, "num_heads": 4}, "is not a multiple of num_heads=4"),
        (StackConfig, {"layers": "m", "num_heads": 3}, "256 .* not a multiple of num_heads=3"),
        (
            StackConfig,
            {"layers": "m", "block": {"kind": "paper", "mlstm_qkv_block_size": 7}},
            "mlstm_qkv_block_size=7",
        ),
        (ModelConfig, {"vocab_size": 0}, "vocab_size must be positive"),
        (ModelConfig, {"num_positions": -1}, "num_positions"),
        (ModelConfig, {"embedding_dropout": 1.0}, "embedding_dropout"),
        (ModelConfig, {"layers": "mx"}, "unknown letter 'x'"),
        (DataConfig, {"val_fraction": 0.0}, "val_fraction"),
        (DataConfig, {"val_fraction": 1.0}, "val_fraction"),
        (DataConfig, {"batch_size": 0}, "batch_size must be positive"),
        (DataConfig, {"window": -1}, "window must be positive"),
        (DataConfig, {"first_window": 0}, "first_window must be from 1 to window=64, not 0"),
        (DataConfig, {"first_window": 65}, "first_window must be from 1 to window=64, not 65"),
        (DataConfig, {"eval_window": 0}, "eval_window must be positive"),
        (TrainConfig, {"steps": None}, "how long to train"),
        (TrainConfig, {"tokens": 0}, "tokens must be positive"),
        (TrainConfig, {"ema_decay": 1.0}, "ema_decay must be in"),
        (TrainConfig, {"steps": 0}, "steps must be positive"),
        (TrainConfig, {"minutes": 0.0}, "minutes must be positive"),
        (TrainConfig, {"minutes": math.inf}, "minutes must be positive"),
        (TrainConfig, {"minutes": math.nan}, "minutes must be positive"),
        (TrainConfig, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (TrainConfig, {"learning_rate": math.nan}, "learning_rate must be positive"),
        (TrainConfig, {"min_learning_rate": 1.0}, "min_learning_rate=1.0 is more than"),
        (TrainConfig, {"warmup": 1.0}, "warmup must be in"),
        (TrainConfig, {"decay_steps": 0}, "decay_steps must be positive"),
        (TrainConfig, {"weight_decay": -0.1}, "weight_decay"),
        (TrainConfig, {"weight_decay": math.inf}, "weight_decay"),
        (TrainConfig, {"beta1": 1.0}, "beta1"),
        (TrainConfig, {"beta2": -0.1}, "beta2"),
        (TrainConfig, {"clip_norm": -1.0}, "clip_norm"),
        (TrainConfig, {"clip_norm": math.nan}, "clip_norm"),
        (TrainConfig, {"eval_every": 0}, "eval_every must be positive"),
        (TrainConfig, {"eval_batches": 0}, "eval_batches must be positive"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(
    kind: type[Config], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        kind(**{**NEEDED[kind], **options})
    assert "\n" not in str(caught.value)


def test_options_of_a_block_go_to_the_block() -> None:
    config = ModelConfig.from_options(vocab_size=3, layers="m", block="large", eps=0.5)
    assert config.block == LargeBlockConfig(eps=0.5)
    assert config == ModelConfig(vocab_size=3, layers="m", block=LargeBlockConfig(eps=0.5))
    assert config.replace(qk_dim_factor=1.0).block == LargeBlockConfig(eps=0.5, qk_dim_factor=1.0)
    assert (config.logit_soft_cap, config.replace(block="paper").logit_soft_cap) == (30.0, 0.0)
    assert config.replace(block="paper", mlstm_eps=0.5).block == PaperBlockConfig(mlstm_eps=0.5)
    with pytest.raises(UserError, match="'slstm_ff_factor' with block='large': it belongs to bl"):
        config.replace(slstm_ff_factor=0.0)
    with pytest.raises(UserError, match=r"no option 'bogus'; it has: .*, eps"):
        config.replace(bogus=1)


def test_replace_is_checked_too() -> None:
    config = StackConfig()
    assert config.replace(layers="s").layers == "s"
    assert config.layers == "ms"
    with pytest.raises(UserError, match="unknown letter"):
        config.replace(layers="q")


@pytest.mark.parametrize("kind", NEEDED)
def test_configurations_are_frozen(kind: type[Config]) -> None:
    config = kind.from_dict(NEEDED[kind])
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, kind.names()[0], None)
    with pytest.raises(TypeError):
        kind(1)  # pyright: ignore[reportCallIssue] - by keyword only


@pytest.mark.parametrize(
    ("embedding_dim", "inner", "ff"),
    [(128, 256, 192), (16, 64, 64), (164, 384, 256), (50, 128, 128)],
)
def test_inner_widths_are_multiples_of_64(embedding_dim: int, inner: int, ff: int) -> None:
    block = PaperBlockConfig()
    assert block.mlstm_inner_dim(embedding_dim) == inner
    assert block.slstm_ff_dim(embedding_dim) == ff
    assert round_up(64) == 64
    assert round_up(64.1) == 128


@pytest.mark.parametrize(
    ("embedding_dim", "factor", "multiple", "ff"),
    [(4096, 2.6667, 64, 10944), (768, 2.6667, 64, 2048), (3072, 2.667, 64, 8256), (48, 2.0, 1, 96)],
)
def test_width_of_a_large_feedforward(
    embedding_dim: int, factor: float, multiple: int, ff: int
) -> None:
    block = LargeBlockConfig(ff_factor=factor, ff_multiple=multiple)
    assert block.ff_dim(embedding_dim) == ff


def test_what_a_layer_does_not_use_does_not_limit_it() -> None:
    """An sLSTM's width says nothing about a model without one, and the other way round."""
    assert StackConfig(layers="m", embedding_dim=10, num_heads=4).mlstm_head_dims == (16, 16)
    assert StackConfig(layers="s", embedding_dim=9, num_heads=3).embedding_dim == 9
