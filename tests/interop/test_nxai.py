"""NX-AI's configuration of v1: every option is honoured, known not to matter, or an error."""

import copy
from typing import Any

import pytest
from interop_cases import PAPER, random_model, weights_of

from openxlstm.config import ModelConfig, StackConfig
from openxlstm.errors import UserError
from openxlstm.interop.foreign_options import below_model
from openxlstm.interop.keymap import nxai_rows
from openxlstm.interop.nxai import read_paper_config, write_paper_config
from openxlstm.interop.translate import to_theirs

FULL: dict[str, Any] = {
    "mlstm_block": {
        "mlstm": {
            "proj_factor": 2.0,
            "round_proj_up_dim_up": True,
            "round_proj_up_to_multiple_of": 64,
            "_proj_up_dim": 128,
            "conv1d_kernel_size": 4,
            "qkv_proj_blocksize": 4,
            "num_heads": 4,
            "embedding_dim": 64,
            "bias": False,
            "dropout": 0.0,
            "context_length": 32,
            "_num_blocks": 3,
            "_inner_embedding_dim": 128,
        },
        "_num_blocks": 3,
        "_block_idx": None,
    },
    "slstm_block": {
        "slstm": {
            "hidden_size": 64,
            "num_heads": 4,
            "num_states": 4,
            "backend": "cuda",
            "function": "slstm",
            "bias_init": "small_init",
            "recurrent_weight_init": "standard",
            "_block_idx": None,
            "_num_blocks": 3,
            "num_gates": 4,
            "gradient_recurrent_cut": False,
            "gradient_recurrent_clipval": None,
            "forward_clipval": None,
            "batch_size": 8,
            "input_shape": "BSGNH",
            "internal_input_shape": "SBNGH",
            "output_shape": "BNSH",
            "constants": {},
            "dtype": "bfloat16",
            "dtype_b": "float32",
            "dtype_r": None,
            "dtype_w": None,
            "dtype_g": None,
            "dtype_s": None,
            "dtype_a": None,
            "enable_automatic_mixed_precision": True,
            "initial_val": 0.0,
            "embedding_dim": 64,
            "conv1d_kernel_size": 4,
            "group_norm_weight": True,
            "dropout": 0.0,
        },
        "feedforward": {
            "proj_factor": 1.3,
            "round_proj_up_dim_up": True,
            "round_proj_up_to_multiple_of": 64,
            "_proj_up_dim": 128,
            "act_fn": "gelu",
            "embedding_dim": 64,
            "dropout": 0.0,
            "bias": False,
            "ff_type": "ffn_gated",
            "_num_blocks": 3,
        },
        "_num_blocks": 3,
        "_block_idx": None,
    },
    "context_length": 32,
    "num_blocks": 3,
    "embedding_dim": 64,
    "add_post_blocks_norm": True,
    "bias": False,
    "dropout": 0.0,
    "slstm_at": [1],
    "_block_map": "0,1,0",
    "vocab_size": 11,
    "tie_weights": False,
    "weight_decay_on_embedding": False,
    "add_embedding_dropout": False,
}
"""What `dataclasses.asdict` makes of a configuration."""


def changed(path: str, value: Any) -> dict[str, Any]:
    """FULL with one option, below some tables, of another value."""
    values = copy.deepcopy(FULL)
    *tables, name = path.split(".")
    table = values
    for key in tables:
        table = table[key]
    table[name] = value
    return values


def config_of(values: dict[str, Any], **options: Any) -> StackConfig:
    return read_paper_config(values, {}, "config.yaml", **options).config


def complaint(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        config_of(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_whole_dataclass() -> None:
    assert config_of(FULL) == ModelConfig.from_options(
        vocab_size=11, embedding_dim=64, layers="msm", mlstm_eps=1e-6,
        slstm_recurrent_init="uniform",
    )  # fmt: skip


def test_defaults_are_the_dataclass_s() -> None:
    blocks = {"mlstm_block": {}, "slstm_block": {}, "slstm_at": [0], "num_blocks": 2}
    expected = StackConfig.from_options(layers="sm", mlstm_eps=1e-6)
    assert config_of(blocks) == expected
    assert config_of({**blocks, "vocab_size": -1}) == expected
    assert config_of({"slstm_block": {}, "num_blocks": 2}).layers == "ss"
    assert config_of({"mlstm_block": {"mlstm": {}}, "num_blocks": 2}).layers == "mm"


@pytest.mark.parametrize(
    ("path", "value", "ours"),
    [
        ("slstm_at", "all", {"layers": "sss"}),
        ("slstm_at", [0, -1], {"layers": "sms"}),
        ("slstm_at", [], {"layers": "mmm"}),
        ("add_post_blocks_norm", False, {"final_norm": False}),
        ("tie_weights", True, {"tie_weights": True}),
        ("bias", True, {"bias": True}),
        ("slstm_block.feedforward.bias", True, {"bias": True}),
        ("slstm_block.feedforward", None, {"slstm_ff_factor": 0.0}),
        ("slstm_block.feedforward.proj_factor", 4, {"slstm_ff_factor": 4.0}),
        ("slstm_block.slstm.conv1d_kernel_size", 0, {"slstm_conv_kernel_size": 0}),
        ("slstm_block.slstm.recurrent_weight_init", "zeros", {"slstm_recurrent_init": "zeros"}),
        ("mlstm_block.mlstm.conv1d_kernel_size", 3, {"mlstm_conv_kernel_size": 3}),
        ("mlstm_block.mlstm.qkv_proj_blocksize", 8, {"mlstm_qkv_block_size": 8}),
        ("mlstm_block.mlstm.proj_factor", "1.5e0", {"mlstm_proj_factor": 1.5}),
        ("mlstm_block.mlstm.round_proj_up_dim_up", False, {"mlstm_proj_factor": 2.0}),
        ("mlstm_block.mlstm.round_proj_up_to_multiple_of", 128, {"mlstm_proj_factor": 2.0}),
    ],
)
def test_an_option_that_is_honoured(path: str, value: Any, ours: dict[str, Any]) -> None:
    values = changed(path, value)
    if path == "slstm_at":
        del values["_block_map"]
    found = config_of(values)
    assert found == found.replace(**ours)


def test_dropout() -> None:
    values = {**FULL, "dropout": 0.1, "add_embedding_dropout": True}
    reading = read_paper_config(values, {}, "config.yaml")
    assert reading.language_model.dropout == reading.language_model.embedding_dropout == 0.1
    assert "feed-forwards' dropout=0" in reading.notes[0]


def test_rounding_down() -> None:
    values = changed("mlstm_block.mlstm.round_proj_up_dim_up", False)
    values["mlstm_block"]["mlstm"]["proj_factor"] = 1.9
    assert config_of(values).block.mlstm_dims(64) == (64, 64)
    values["embedding_dim"] = 63
    assert "inner width 64" not in complaint({**values, "num_blocks": 0})
    values["mlstm_block"]["mlstm"] |= {"round_proj_up_to_multiple_of": 60}
    message = complaint({**values, "embedding_dim": 64})
    assert "mlstm_block.mlstm.round_proj_up_to_multiple_of=60 gives the inner width 120" in message


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("num_blocks", 0, "num_blocks=0 must be 1 or more"),
        ("num_blocks", 2.5, "num_blocks=2.5 must be of type int"),
        ("slstm_at", [3], "slstm_at=[3] must be 'all' or a list of blocks from 0 to 2"),
        ("slstm_at", "first", "slstm_at='first' must be 'all'"),
        ("_block_map", "0,0,1", "_block_map='0,0,1' does not fit slstm_at and num_blocks=3"),
        ("bias", "yes", "bias='yes' must be of type bool"),
        ("vocab_size", "${dataset.size}", "refers to an option that does not exist"),
        ("vocab_size", 0, "vocab_size=0 must be a whole number of 1 or more"),
        ("mlstm_block", "mlstm", "mlstm_block='mlstm' must be a table of options"),
        ("slstm_block", None, "has sLSTM blocks but no table slstm_block"),
        ("mlstm_block.mlstm.num_heads", 2, "mlstm_block.mlstm.num_heads=2 and slstm_block"),
        ("mlstm_block.mlstm.proj_factor", float("nan"), "proj_factor=nan must be positive"),
        ("slstm_block.slstm.function", "lstm", "slstm_block.slstm.function='lstm' has no counte"),
        ("slstm_block.slstm.num_states", 2, "num_states=2 has no counterpart"),
        ("slstm_block.slstm.gradient_recurrent_cut", True, "gradient_recurrent_cut=True has no"),
        ("slstm_block.slstm.gradient_recurrent_clipval", 1.0, "gradient_recurrent_clipval=1.0"),
        ("slstm_block.slstm.forward_clipval", 1.0, "forward_clipval=1.0 has no counterpart"),
        ("slstm_block.slstm.initial_val", 1.0, "initial_val=1.0 has no counterpart"),
        ("slstm_block.slstm.recurrent_weight_init", "ones", "must be zeros or standard"),
        ("slstm_block.feedforward.act_fn", "relu", "slstm_block.feedforward.act_fn='relu' has no"),
        ("slstm_block.feedforward.ff_type", "ffn", "ff_type='ffn' has no counterpart"),
        ("mlstm_block.mlstm.chunks", 4, "does not know: mlstm_block.mlstm.chunks"),
        ("mlstm_block.feedforward", None, "does not know: mlstm_block.feedforward"),
        ("slstm_block.slstm.wings", 2, "does not know: slstm_block.slstm.wings"),
        ("wings", 2, "options that openxlstm does not know: wings; --allow-unknown"),
        ("embedding_dim", 66, "embedding_dim=66 is not a multiple of num_heads=4"),
    ],
)
def test_an_option_that_is_an_error(path: str, value: Any, says: str) -> None:
    message = complaint(changed(path, value))
    assert message.startswith("config.yaml")
    assert says in message


@pytest.mark.parametrize("path", ["wings", "mlstm_block.wings", "slstm_block.slstm.wings"])
def test_unknown_options_can_be_allowed(path: str) -> None:
    assert config_of(changed(path, 2), allow_unknown=True) == config_of(FULL)


def test_a_block_map_alone() -> None:
    values = {name: value for name, value in FULL.items() if name != "slstm_at"}
    assert config_of(values).layers == "msm"


def test_biases_of_one_kind_of_block_alone() -> None:
    """Those of the other are 0, as if it had none."""
    config = ModelConfig.from_options(**{**PAPER, "bias": True})
    theirs = dict(to_theirs(nxai_rows("ms"), weights_of(random_model(config))))
    values, _ = write_paper_config(config)
    without = {k: v for k, v in theirs.items() if not k.endswith((".ffn.proj_up.bias",))}
    without = {k: v for k, v in without.items() if not k.endswith(".ffn.proj_down.bias")}
    values["slstm_block"]["feedforward"]["bias"] = False
    reading = read_paper_config(values, without, "config.yaml")
    assert reading.may_lack == {f"stack.blocks.1.ff.{part}_proj.bias" for part in ("up", "down")}
    values["slstm_block"]["feedforward"]["bias"] = True
    values["bias"] = False
    lacking = read_paper_config(values, theirs, "config.yaml").may_lack
    parts = ("up", "q", "k", "v", "down")
    assert lacking == {f"stack.blocks.0.layer.{part}_proj.bias" for part in parts}


def test_a_head_norm_without_weights() -> None:
    reading = read_paper_config(changed("slstm_block.slstm.group_norm_weight", False), {}, "c")
    assert reading.may_lack == {"stack.blocks.1.layer.norm.weight"}


def test_references_are_followed() -> None:
    values = {
        "dataset": {"kwargs": {"vocab_size": 9}},
        "training": {"lr": "${model.lr}"},
        "model": {"vocab_size": "${dataset.kwargs.vocab_size}", "slstm_at": ["${nowhere}"]},
    }
    assert below_model(values) == {"vocab_size": 9, "slstm_at": ["${nowhere}"]}
    assert below_model({"vocab_size": 9}) == {"vocab_size": 9}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_positions": 4}, "num_positions=4 has no counterpart in NX-AI's xlstm"),
        ({"slstm_forget_gate": "exp"}, "slstm_forget_gate='exp' has no counterpart"),
        ({"mlstm_conv_kernel_size": 0}, "mlstm_conv_kernel_size=0 has no counterpart"),
        ({"block": "large", "layers": "m"}, "block='large' has no counterpart"),
    ],
)
def test_what_cannot_be_written(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        write_paper_config(ModelConfig.from_options(**PAPER).replace(**options))


def test_what_is_different_there_is_said() -> None:
    config = ModelConfig.from_options(
        **{**PAPER, "mlstm_eps": 0.0, "dropout": 0.1, "embedding_dropout": 0.2},
        dropout_kind="channels",
    )
    notes = "; ".join(write_paper_config(config)[1])
    assert "mlstm_eps=0" in notes
    assert "embedding_dropout is 0.1 there" in notes
    assert "single elements" in notes
