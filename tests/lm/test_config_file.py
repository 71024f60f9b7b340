"""`config.json`: every format that was ever written opens; what is not understood is an error."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.config import (
    BareBlockConfig,
    LargeBlockConfig,
    ModelConfig,
    PaperBlockConfig,
    StackConfig,
)
from openxlstm.errors import UserError
from openxlstm.lm.config_file import CONFIG, read_config, upgraded, write_config

STACK_1: dict[str, Any] = {
    "embedding_dim": 32, "layers": "mm", "num_heads": 2, "block": "paper", "bias": True,
    "final_norm": True, "dropout": 0.1, "dropout_kind": "channels", "mlstm_proj_factor": 4.0,
    "mlstm_qkv_block_size": 8, "mlstm_conv_kernel_size": 3, "mlstm_eps": 1e-6,
    "slstm_ff_factor": 1.5, "slstm_conv_kernel_size": 2, "slstm_forget_gate": "exp",
    "slstm_recurrent_init": "uniform", "large_qk_dim_factor": 1.0, "large_v_dim_factor": 2.0,
    "large_ff_factor": 3.0, "large_ff_multiple": 8, "large_norm_eps": 1e-5,
    "large_gate_soft_cap": 7.0,
}  # fmt: skip
"""A table of format 1: options of all kinds of blocks side by side."""
MODEL_1: dict[str, Any] = {
    **STACK_1, "vocab_size": 11, "num_positions": 5, "tie_weights": True,
    "embedding_dropout": 0.2, "large_logit_soft_cap": 9.0,
}  # fmt: skip
COMMON: dict[str, Any] = {
    "embedding_dim": 32, "layers": "mm", "num_heads": 2, "bias": True, "dropout": 0.1,
    "dropout_kind": "channels",
}  # fmt: skip
MODEL: dict[str, Any] = {
    **COMMON, "vocab_size": 11, "num_positions": 5, "tie_weights": True, "embedding_dropout": 0.2,
}  # fmt: skip
PAPER = PaperBlockConfig(
    mlstm_proj_factor=4.0, mlstm_qkv_block_size=8, mlstm_conv_kernel_size=3, mlstm_eps=1e-6,
    slstm_ff_factor=1.5, slstm_conv_kernel_size=2, slstm_forget_gate="exp",
    slstm_recurrent_init="uniform",
)  # fmt: skip
LARGE = LargeBlockConfig(
    qk_dim_factor=1.0, v_dim_factor=2.0, ff_factor=3.0, ff_multiple=8, norm_eps=1e-5,
    gate_soft_cap=7.0, eps=1e-6,
)  # fmt: skip
BARE = BareBlockConfig(eps=1e-6, forget_gate="exp", recurrent_init="uniform")


def write(folder: Path, **values: Any) -> None:
    (folder / CONFIG).write_text(json.dumps({"format": "openxlstm", **values}))


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("paper", ModelConfig(**MODEL, block=PAPER)),
        ("large", ModelConfig(**MODEL, block=LARGE, logit_soft_cap=9.0)),
    ],
)
def test_a_model_of_format_1(block: str, expected: ModelConfig, tmp_path: Path) -> None:
    write(tmp_path, model={**MODEL_1, "block": block})
    assert read_config(tmp_path, ModelConfig) == expected
    write_config(expected, tmp_path)
    assert read_config(tmp_path, ModelConfig) == expected
    assert json.loads((tmp_path / CONFIG).read_text())["format_version"] == 2


def test_a_stack_of_format_1(tmp_path: Path) -> None:
    write(tmp_path, stack={**STACK_1, "block": "bare"})
    expected = StackConfig(**COMMON, block=BARE)
    assert read_config(tmp_path, StackConfig) == expected
    write_config(expected, tmp_path)
    assert read_config(tmp_path, StackConfig) == expected


@given(st.dictionaries(st.sampled_from(sorted(MODEL_1)), st.none()))
def test_a_table_of_format_1_that_lacks_options_has_their_defaults(missing: dict[str, Any]) -> None:
    table = {"vocab_size": 11, "layers": "mm"}
    table |= {name: value for name, value in MODEL_1.items() if name not in missing}
    config = ModelConfig.from_dict(upgraded(table, 1))
    kept = {name: v for name, v in vars(PAPER).items() if name not in missing and name != "kind"}
    assert config.block == PaperBlockConfig(**kept)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"format_version": 3, "model": {"vocab_size": 3}}, "format_version is 3, and this"),
        ({"format_version": "2", "model": {"vocab_size": 3}}, "format_version is '2', and this"),
        ({"format_version": 0, "model": {"vocab_size": 3}}, "format_version is 0, and this"),
        ({"model": {**MODEL_1, "depth": 3}}, "no option 'depth'"),
        ({"model": {"vocab_size": 3, "block": "huge"}}, "block must be paper or large or bare"),
        ({"model": ["vocab_size"]}, "needs a table"),
        ({"format_version": 2, "model": MODEL_1}, "no option 'large_ff_factor'"),
        (
            {"format_version": 2, "model": {**MODEL, "block": {"kind": "large", "mlstm_eps": 0.1}}},
            "LargeBlockConfig has no option 'mlstm_eps'",
        ),
        (
            {"format_version": 2, "hidden_size": 64, "model": MODEL},
            "hidden_size=64 contradicts the model's options, which say 32",
        ),
        ({"format_version": 2, "vocab_size": 3, "model": MODEL}, "vocab_size=3 contradicts"),
    ],
)
def test_what_is_not_understood_is_one_line(
    values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    write(tmp_path, **values)
    with pytest.raises(UserError) as caught:
        read_config(tmp_path, ModelConfig)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / CONFIG))
    assert "\n" not in str(caught.value)
