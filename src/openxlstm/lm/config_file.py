"""`config.json`: the configuration of a model or of a stack, with the version of its format.

Version 2 holds `{"format": "openxlstm", "format_version": 2, "model": ModelConfig.to_dict()}`, or
"stack" and a StackConfig in place of "model". Version 1 had no number, and the options of all kinds
of blocks beside each other in one table.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from openxlstm.config import ModelConfig, StackConfig
from openxlstm.errors import UserError
from openxlstm.files import read_json, write_json
from openxlstm.strict import require

C = TypeVar("C", bound=StackConfig)

CONFIG = "config.json"
FORMAT = "openxlstm"
FORMAT_VERSION = 2
FOR_TRANSFORMERS = {"model_type": FORMAT, "architectures": ["OpenXLSTMForCausalLM"]}
"""Keys by which transformers recognises the folder once `openxlstm.hf` is imported."""

IN_TRANSFORMERS: dict[str, Callable[[StackConfig], int]] = {
    "hidden_size": lambda config: config.embedding_dim,
    "num_hidden_layers": lambda config: len(config.layers),
    "num_attention_heads": lambda config: config.num_heads,
}
"""Names that libraries around transformers look for, which a file may have beside the table."""

VERSION_1: dict[str, dict[str, str]] = {
    "paper": {
        name: name
        for name in (
            "mlstm_proj_factor", "mlstm_qkv_block_size", "mlstm_conv_kernel_size", "mlstm_eps",
            "slstm_ff_factor", "slstm_conv_kernel_size", "slstm_forget_gate",
            "slstm_recurrent_init",
        )
    },
    "large": {
        "mlstm_eps": "eps",
        "large_qk_dim_factor": "qk_dim_factor",
        "large_v_dim_factor": "v_dim_factor",
        "large_ff_factor": "ff_factor",
        "large_ff_multiple": "ff_multiple",
        "large_norm_eps": "norm_eps",
        "large_gate_soft_cap": "gate_soft_cap",
        "large_logit_soft_cap": "logit_soft_cap",
    },
    "bare": {
        "mlstm_eps": "eps",
        "slstm_forget_gate": "forget_gate",
        "slstm_recurrent_init": "recurrent_init",
    },
}  # fmt: skip
"""By kind of block, the options of version 1 that had an effect, and their names today."""


def write_config(config: StackConfig, folder: str | Path) -> None:
    """Writes the `config.json` of a model or of a stack."""
    values: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    if isinstance(config, ModelConfig):
        values |= {**FOR_TRANSFORMERS, "model": config.to_dict()}
    else:
        values["stack"] = config.to_dict()
    write_json(Path(folder) / CONFIG, values)


def read_config(folder: str | Path, kind: type[C]) -> C:
    """The configuration of the model, or of the stack, in `folder`.

    Raises:
        UserError: if there is none, it is not of this kind, or this version cannot read it.
    """
    path = Path(folder) / CONFIG
    what = "model" if issubclass(kind, ModelConfig) else "stack"
    if not path.is_file():
        hint = f"it has no {CONFIG}" if Path(folder).exists() else "it does not exist"
        raise UserError(f"{folder} is not a {what}'s folder: {hint}")
    values = read_json(path)
    if values.get("format") != FORMAT or what not in values:
        raise UserError(f"{path} is not an openxlstm {what}'s configuration")
    try:
        config = kind.from_dict(upgraded(values[what], values.get("format_version", 1)))
        check_names(config, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config


def upgraded(table: Any, version: Any) -> Any:
    """The table "model" or "stack" of a file of format `version`, as today's version has it.

    Raises:
        UserError: on a version that is unknown here.
    """
    require(
        type(version) is int and 1 <= version <= FORMAT_VERSION,
        f"format_version is {version!r}, and this openxlstm reads 1 to {FORMAT_VERSION}; "
        "install a newer one",
    )
    block = table.get("block", "paper") if isinstance(table, dict) else None
    if version > 1 or not isinstance(block, str) or block not in VERSION_1:
        return table
    renamed, old_names = VERSION_1[block], set().union(*VERSION_1.values())
    values = {renamed[name]: value for name, value in table.items() if name in renamed}
    top = {name: value for name, value in table.items() if name not in old_names}
    if "logit_soft_cap" in values:
        top["logit_soft_cap"] = values.pop("logit_soft_cap")
    return {**top, "block": {"kind": block, **values}}


def check_names(config: StackConfig, values: Mapping[str, Any]) -> None:
    """Raises UserError if values that stand beside the table in a file contradict it."""
    derived = {name: value(config) for name, value in IN_TRANSFORMERS.items()}
    for name, value in {**config.to_dict(), **derived}.items():
        found = values.get(name, value)
        require(
            found == value,
            f"{name}={found!r} contradicts the model's options, which say {value!r}",
        )
