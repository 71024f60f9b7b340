"""Reads and writes configurations of NX-AI's `xlstm` v1: `xLSTMLMModel` and `xLSTMBlockStack`.

The options and their defaults are those of the dataclasses of xlstm 2.0.6.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openxlstm.config import ModelConfig, PaperBlockConfig, StackConfig, round_up
from openxlstm.errors import UserError
from openxlstm.interop.foreign_options import Options, factor_of
from openxlstm.interop.keymap import Layout, layout_of, nxai_rows, nxai_stack_rows
from openxlstm.interop.reading import Reading

EPS = 1e-6
"""Constant that NX-AI's mLSTM adds to its denominator; not an option there."""

TRAINING = ("weight_decay_on_embedding",)
SET_FROM_ABOVE = (
    "embedding_dim", "bias", "dropout", "context_length", "hidden_size",
    "_num_blocks", "_block_idx", "_inner_embedding_dim", "_proj_up_dim",
)  # fmt: skip
"""Options of an inner table that the outer table overrides or that follow from others."""
SLSTM_KERNELS = (
    "backend", "batch_size", "input_shape", "internal_input_shape", "output_shape", "constants",
    "dtype", "dtype_b", "dtype_r", "dtype_w", "dtype_g", "dtype_s", "dtype_a",
    "enable_automatic_mixed_precision",
)  # fmt: skip
"""Options of an sLSTM that select NX-AI's kernels and have no effect on results."""
RECURRENT_INITS = {"zeros": "zeros", "standard": "uniform"}


def read_paper_config(
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    place: str,
    *,
    allow_unknown: bool = False,
) -> Reading:
    """Reads the configuration of `xLSTMLMModel`, or of `xLSTMBlockStack` if it has no vocabulary.

    Args:
        values: the table of options, from YAML, JSON or `dataclasses.asdict`.
        tensors: the checkpoint; the shapes tell the layout of an sLSTM's tensors.
        place: the origin of the table, for messages.
        allow_unknown: skip options that openxlstm does not know, instead of raising.

    Raises:
        UserError: if an option is unknown or has no counterpart in openxlstm; the message names it.
    """
    top = Options(values, place)
    D = _positive(top, "embedding_dim", 128)
    layers = _layers(top)
    bias, dropout = top.take("bias", False), top.take("dropout", 0.0)
    options: dict[str, Any] = {
        "embedding_dim": D,
        "layers": layers,
        "dropout": dropout,
        "final_norm": top.take("add_post_blocks_norm", True),
        "mlstm_eps": EPS,
    }
    lacking: set[str] = set()
    notes: list[str] = []
    inner = [top.table("mlstm_block"), top.table("slstm_block")]
    heads, biases = {}, {}
    if "m" in layers and inner[0] is not None:
        heads["mlstm_block.mlstm.num_heads"] = _read_mlstm(inner[0], options, D, allow_unknown)
        biases["m"] = bias
    if "s" in layers:
        if inner[1] is None:
            raise UserError(
                f"{place} has sLSTM blocks but no table slstm_block, which configures them"
            )
        table = inner[1]
        heads["slstm_block.slstm.num_heads"] = _read_slstm(table, options, lacking, allow_unknown)
        biases["s"] = _read_feedforward(table, options, dropout, notes, allow_unknown)
    if len(set(heads.values())) > 1:
        both = " and ".join(f"{name}={value}" for name, value in heads.items())
        raise UserError(f"{place}: {both}; openxlstm has one number of heads for all blocks")
    options["num_heads"] = next(iter(heads.values()))
    options["bias"] = any(biases.values())
    if options["bias"]:
        lacking |= {
            name
            for block, letter in enumerate(layers)
            if not biases[letter]
            for name in _biases(letter, f"blocks.{block}.")
        }
    top.ignore(("context_length", *TRAINING))
    is_model = top.raw("vocab_size", -1) != -1
    if is_model:
        options["vocab_size"] = top.need("vocab_size")
        options["tie_weights"] = top.take("tie_weights", False)
        options["embedding_dropout"] = dropout if top.take("add_embedding_dropout", False) else 0.0
    top.finish(allow_unknown=allow_unknown)
    theirs, ours = ("xlstm_block_stack.", "stack.") if is_model else ("", "")
    layouts: list[Layout] = [
        _layout(tensors, f"{theirs}blocks.{block}.", options["num_heads"], D)
        for block in range(len(layers))
    ]
    kind, rows = (ModelConfig, nxai_rows) if is_model else (StackConfig, nxai_stack_rows)
    try:
        config = kind.from_options(**options)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return Reading(
        config=config,
        rows=rows(layers, layouts),
        may_lack=frozenset(ours + name for name in lacking),
        ignore=frozenset(name for name in tensors if name.endswith(".mlstm_cell.causal_mask")),
        notes=notes,
    )


def write_paper_config(config: StackConfig) -> tuple[dict[str, Any], list[str]]:
    """NX-AI's options for the same model, and notes for the user about differences.

    Raises:
        UserError: if an option has no counterpart in NX-AI's model; the message names it.
    """
    block = _check_writable(config)
    bias, dropout = config.bias, config.dropout
    values: dict[str, Any] = {
        "num_blocks": len(config.layers),
        "embedding_dim": config.embedding_dim,
        "slstm_at": [block for block, letter in enumerate(config.layers) if letter == "s"],
        "context_length": 2048,  # the size of a mask, and so the longest sequence of one call
        "bias": bias,
        "dropout": dropout,
        "add_post_blocks_norm": config.final_norm,
    }
    notes = []
    if "m" in config.layers:
        values["mlstm_block"] = {
            "mlstm": {
                "num_heads": config.num_heads,
                "proj_factor": block.mlstm_proj_factor,
                "qkv_proj_blocksize": block.mlstm_qkv_block_size,
                "conv1d_kernel_size": block.mlstm_conv_kernel_size,
            }
        }
        if block.mlstm_eps != EPS:
            notes.append(
                f"NX-AI's mLSTM adds {EPS:g} to its denominator, this one mlstm_eps="
                f"{block.mlstm_eps:g}: logits differ by about as much"
            )
    if "s" in config.layers:
        feedforward = {"proj_factor": block.slstm_ff_factor, "act_fn": "gelu"}
        values["slstm_block"] = {
            "slstm": {
                "num_heads": config.num_heads,
                "conv1d_kernel_size": block.slstm_conv_kernel_size,
                "recurrent_weight_init": block.slstm_recurrent_init.replace("uniform", "standard"),
                "backend": "vanilla",
                "dtype": "float32",
            },
            "feedforward": {**feedforward, "bias": bias, "dropout": dropout}
            if block.slstm_ff_factor
            else None,
        }
    if isinstance(config, ModelConfig):
        values["vocab_size"] = config.vocab_size
        values["tie_weights"] = config.tie_weights
        values["add_embedding_dropout"] = config.embedding_dropout > 0
        if config.embedding_dropout not in (0.0, dropout):
            notes.append(f"embedding_dropout is {dropout:g} there, as dropout is")
    if dropout and config.dropout_kind != "elements":
        notes.append("dropout drops single elements there, not channels")
    return values, notes


def _read_mlstm(block: Options, options: dict[str, Any], D: int, allow_unknown: bool) -> int:
    """Adds the options of mLSTM blocks to `options`; returns their number of heads."""
    mlstm = _table(block, "mlstm")
    heads = _positive(mlstm, "num_heads", 4)
    options |= {
        "mlstm_proj_factor": _inner_width(mlstm, D, 2.0),
        "mlstm_qkv_block_size": _positive(mlstm, "qkv_proj_blocksize", 4),
        "mlstm_conv_kernel_size": mlstm.take("conv1d_kernel_size", 4),
    }
    for table in (mlstm, block):
        table.ignore(SET_FROM_ABOVE)
        table.finish(allow_unknown=allow_unknown)
    return heads


def _read_slstm(
    block: Options, options: dict[str, Any], lacking: set[str], allow_unknown: bool
) -> int:
    """Adds the options of sLSTM blocks to `options`, and the names of tensors that the checkpoint
    does not have to `lacking`; returns the number of heads."""
    slstm = _table(block, "slstm")
    heads = _positive(slstm, "num_heads", 4)
    init = slstm.take("recurrent_weight_init", "zeros")
    if init not in RECURRENT_INITS:
        slstm.fail("recurrent_weight_init", "must be zeros or standard")
    options["slstm_recurrent_init"] = RECURRENT_INITS[init]
    options["slstm_conv_kernel_size"] = slstm.take("conv1d_kernel_size", 4)
    if not slstm.take("group_norm_weight", True):
        lacking |= {
            f"blocks.{block_index}.layer.norm.weight"
            for block_index, letter in enumerate(options["layers"])
            if letter == "s"
        }
    slstm.only("function", "slstm")
    slstm.only("num_states", 4)
    slstm.only("num_gates", 4)
    slstm.only("gradient_recurrent_cut", False)
    slstm.only("gradient_recurrent_clipval", None)
    slstm.only("forward_clipval", None)
    slstm.only("initial_val", 0.0, 0)
    slstm.ignore(("bias_init", *SLSTM_KERNELS, *SET_FROM_ABOVE))
    slstm.finish(allow_unknown=allow_unknown)
    return heads


def _read_feedforward(
    block: Options,
    options: dict[str, Any],
    dropout: float,
    notes: list[str],
    allow_unknown: bool,
) -> bool:
    """Adds the options of the feed-forwards to `options`; returns whether they have biases."""
    if "feedforward" in block and block.raw("feedforward") is None:
        options["slstm_ff_factor"] = 0.0
        bias = False
    else:
        feedforward = _table(block, "feedforward")
        options["slstm_ff_factor"] = _inner_width(feedforward, options["embedding_dim"], 1.3)
        feedforward.only("act_fn", "gelu")
        feedforward.only("ff_type", "ffn_gated")
        bias = feedforward.take("bias", False)
        inner = feedforward.take("dropout", 0.0)
        if inner != dropout:
            notes.append(
                f"the feed-forwards' dropout={inner:g} is that of all sub-layers here, {dropout:g}"
            )
        feedforward.ignore(SET_FROM_ABOVE)
        feedforward.finish(allow_unknown=allow_unknown)
    block.ignore(SET_FROM_ABOVE)
    block.finish(allow_unknown=allow_unknown)
    return bias


def _layers(top: Options) -> str:
    """One letter per block, from slstm_at or from the map that the dataclass derives from it."""
    count = _positive(top, "num_blocks", 1)
    if top.raw("mlstm_block") is None:
        top.ignore(("slstm_at", "_block_map"))
        return "s" * count
    at = top.raw("slstm_at", [])
    at = list(range(count)) if at == "all" else at
    if not isinstance(at, list) or not all(type(i) is int and -count <= i < count for i in at):
        top.fail("slstm_at", f"must be 'all' or a list of blocks from 0 to {count - 1}")
    layers = ["m"] * count
    for index in at:
        layers[index] = "s"
    block_map = top.raw("_block_map")
    if block_map is not None:
        letters = {"0": "m", "1": "s"}
        mapped = [letters.get(number.strip()) for number in str(block_map).split(",")]
        if mapped != layers and ("slstm_at" in top or None in mapped or len(mapped) != count):
            top.fail("_block_map", f"does not fit slstm_at and num_blocks={count}")
        layers = mapped
    return "".join(filter(None, layers))


def _layout(tensors: Mapping[str, Tensor], block: str, num_heads: int, D: int) -> Layout:
    """The layout of an sLSTM's tensors in a checkpoint.

    Raises:
        UserError: if its recurrent weights have the shape of neither layout.
    """
    name = f"{block}xlstm.slstm_cell._recurrent_kernel_"
    if name not in tensors:
        return "vanilla"  # an mLSTM block, or a missing tensor, which `to_ours` reports
    found, DH = tuple(tensors[name].shape), D // num_heads
    shapes: dict[tuple[int, ...], Layout] = {
        (num_heads, 4 * DH, DH): "vanilla",
        (num_heads, DH, 4 * DH): "cuda",
    }
    if found not in shapes:
        either = " or ".join(map(str, shapes))
        raise UserError(f"{name} has the shape {found}; the configuration needs {either}")
    assert layout_of(found) == shapes[found]
    return shapes[found]


def _biases(letter: str, block: str) -> list[str]:
    """The biases of a block in openxlstm that are optional in NX-AI's model."""
    parts = {
        "m": ["layer.up_proj", "layer.q_proj", "layer.k_proj", "layer.v_proj", "layer.down_proj"],
        "s": ["ff.up_proj", "ff.down_proj"],
    }
    return [f"{block}{part}.bias" for part in parts[letter]]


def _inner_width(table: Options, D: int, default: float) -> float:
    """The factor that gives the inner width of a table of NX-AI's options.

    Raises:
        UserError: if the width is not a multiple of 64.
    """
    factor = table.take("proj_factor", default)
    multiple = _positive(table, "round_proj_up_to_multiple_of", 64)
    up = table.take("round_proj_up_dim_up", True)
    if not 0 < factor < math.inf:
        table.fail("proj_factor", "must be positive")
    if up and multiple == 64:
        return factor
    width = (math.ceil if up else math.floor)(factor * D / multiple) * multiple
    if width % 64 or not width:
        name = "round_proj_up_to_multiple_of" if multiple != 64 else "round_proj_up_dim_up"
        table.fail(name, f"gives the inner width {width}, but openxlstm needs a multiple of 64")
    return factor_of(width, D, factor, lambda factor: round_up(factor * D))


def _table(block: Options, name: str) -> Options:
    """An inner table; empty, and so with all defaults, if it is missing."""
    return block.table(name) or Options({}, block.place, f"{block.prefix}{name}.")


def _positive(table: Options, name: str, default: int) -> int:
    value = table.take(name, default)
    if value < 1:
        table.fail(name, "must be 1 or more")
    return value


def _check_writable(config: StackConfig) -> PaperBlockConfig:
    """The options of the blocks.

    Raises:
        UserError: for the first option that NX-AI's model does not have.
    """
    block, unknown = config.block, None
    if not isinstance(block, PaperBlockConfig):
        unknown = "block", block.kind
    elif "m" in config.layers and not block.mlstm_conv_kernel_size:
        unknown = "mlstm_conv_kernel_size", 0
    elif "s" in config.layers and block.slstm_forget_gate != "sigmoid":
        unknown = "slstm_forget_gate", block.slstm_forget_gate
    elif isinstance(config, ModelConfig) and config.num_positions:
        unknown = "num_positions", config.num_positions
    elif isinstance(config, ModelConfig) and config.logit_soft_cap:
        unknown = "logit_soft_cap", config.logit_soft_cap
    else:
        return block
    raise UserError(
        f"{unknown[0]}={unknown[1]!r} has no counterpart in NX-AI's xlstm: "
        "this model cannot be written in its format"
    )
