"""Writes models in the formats of other libraries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openxlstm.config import ModelConfig, StackConfig
from openxlstm.errors import UserError
from openxlstm.files import write_json, write_text
from openxlstm.interop import nxai, xlstm_large
from openxlstm.interop.keymap import large_rows, nxai_rows, nxai_stack_rows
from openxlstm.interop.opening import EMBEDDING, Format
from openxlstm.interop.translate import LazyTensors, to_theirs
from openxlstm.lm.config_file import CONFIG, write_config
from openxlstm.lm.weight_files import save_weights

HEAD = "head.weight"
REGISTERED = "transformers opens a model of the paper's blocks after `import openxlstm.hf`"


def write_checkpoint(
    folder: Path,
    config: StackConfig,
    tensors: Mapping[str, Tensor],
    kind: Format,
    *,
    shard_bytes: int | None = None,
    token_ids: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes weights and configuration in a format.

    Args:
        folder: is created if it is missing.
        config: a ModelConfig, or a StackConfig for a stack without embedding and head.
        tensors: by openxlstm's names, without a tied head, all of one dtype.
        kind: the format.
        shard_bytes: weights larger than this are split into several files; not for NX-AI.
        token_ids: bos_token_id, eos_token_id and pad_token_id, if known, for Hugging Face.

    Returns:
        Notes for the user about differences in the other library.

    Raises:
        UserError: if an option has no counterpart in the format; the message names it.
        OSError: if a file cannot be written.
    """
    is_model = isinstance(config, ModelConfig)
    if kind == "hf" and not is_model:
        raise UserError("a stack alone has no counterpart in Hugging Face's xLSTM: use --to nxai")
    if kind == "openxlstm" or (kind == "hf" and config.block.kind != "large"):
        save_weights(folder, tensors, shard_bytes=shard_bytes)
        write_config(config, folder)
        return [] if kind == "openxlstm" else [REGISTERED]
    if kind == "nxai":
        if shard_bytes is not None:
            raise UserError("NX-AI's xlstm reads a single file of weights: omit --shard-size")
        return _write_nxai(folder, config, tensors)
    assert is_model
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    values, notes = xlstm_large.write_hugging_face(config, dtype, token_ids or {})
    tensors = with_head(tensors)
    if config.bias:  # the bias of the last norm has no counterpart there
        _check_zero(tensors, "stack.norm.bias", "Hugging Face's xLSTM")
        kept = {name: name for name in tensors if name != "stack.norm.bias"}
        tensors = LazyTensors.renamed(tensors, kept)
    rows = large_rows(len(config.layers), hugging_face=True)
    save_weights(folder, to_theirs(rows, tensors), shard_bytes=shard_bytes)
    write_json(folder / CONFIG, values)
    return notes


def with_head(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a language model, including a tied head."""
    if HEAD in tensors:
        return tensors
    names = {**{name: name for name in tensors}, HEAD: EMBEDDING}
    # A copy, because safetensors rejects tensors that share memory.
    return LazyTensors.renamed(tensors, names).map(
        lambda name, tensor: tensor.clone() if name == HEAD else tensor
    )


def _write_nxai(folder: Path, config: StackConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    import yaml

    if not isinstance(config, ModelConfig):
        values, notes = nxai.write_paper_config(config)
        rows = nxai_stack_rows(config.layers)
    elif config.block.kind == "large":
        values, notes = xlstm_large.write_nxai(config)
        rows, tensors = large_rows(len(config.layers), hugging_face=False), with_head(tensors)
    else:
        values, notes = nxai.write_paper_config(config)
        rows, tensors = nxai_rows(config.layers), with_head(tensors)
    save_weights(folder, to_theirs(rows, tensors))
    write_text(folder / "config.yaml", yaml.safe_dump(values, sort_keys=False))
    return notes


def _check_zero(tensors: Mapping[str, Tensor], name: str, who: str) -> None:
    if torch.count_nonzero(tensors[name]):
        raise UserError(f"{name} is not 0 and has no counterpart in {who}, which has no such bias")
