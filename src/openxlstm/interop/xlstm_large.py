"""Reads and writes configurations of NX-AI's `xlstm_large` (xLSTM-7B) and of Hugging Face's xLSTM,
which is the same model.

The two differ in the name of one tensor, in the default width of the feed-forward, in the names of
some options, and in the last norm, which Hugging Face always has and always without a bias.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from openxlstm.config import LargeBlockConfig, ModelConfig
from openxlstm.errors import UserError
from openxlstm.interop.foreign_options import Options, factor_of
from openxlstm.interop.keymap import large_rows
from openxlstm.interop.reading import Reading, rows_of

KERNELS = (
    "sequence_kernel", "step_kernel", "mode", "chunk_size", "return_last_states",
    "autocast_kernel_dtype", "inference_state_dtype", "norm_reduction_force_float32",
)  # fmt: skip
"""Options that select kernels of the other library. openxlstm always computes norms and states in
float32."""

HUGGING_FACE_ONLY = (
    # Options of every configuration of transformers.
    "model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
    "return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward",
    "is_encoder_decoder", "id2label", "label2id", "problem_type", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "max_inference_chunksize",
    # Options in xLSTM-7B's file that its model does not read.
    "add_embedding_dropout", "add_forward_backend_padding", "add_post_blocks_norm",
    "add_post_norm", "add_qk_norm", "cell_norm_eps", "force_bos_token_insert", "head_dim",
    "igate_bias_init_range", "mlstm_round_up_to_multiple_of",
)  # fmt: skip

NATIVE = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "chunk_size": 64,
    "return_last_states": True,
    "autocast_kernel_dtype": "float32",
    "inference_state_dtype": "float32",
}
"""Kernels that run everywhere, in full precision."""

HUGGING_FACE_UNIT = 64
"""Hugging Face's cache rounds the widths of keys and values up to this; its layers do not."""


def read_large_config(
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    place: str,
    *,
    hugging_face: bool,
    allow_unknown: bool = False,
) -> Reading:
    """Reads the configuration of a checkpoint.

    The widths of queries, values and feed-forwards are taken from the tensors, because the
    originals round them differently.

    Raises:
        UserError: if an option is unknown or has no counterpart in openxlstm; the message names it.
    """
    top = Options(values, place)
    if hugging_face:
        D, num_blocks = top.need("hidden_size", "embedding_dim"), _blocks(top)
        top.ignore(("add_out_norm", *HUGGING_FACE_ONLY))
    else:
        D, num_blocks = top.need("embedding_dim"), top.need("num_blocks")
    final_norm = hugging_face or top.take("add_out_norm", True)
    bias = top.take("use_bias", False)
    fused = "backbone.blocks.0.mlstm_layer.qkv_opreact.weight" in tensors
    kernel = top.raw("chunkwise_kernel", "")
    if "siging" in str(kernel):
        top.fail("chunkwise_kernel", "has a sigmoid input gate, which openxlstm does not support")
    top.only("weight_mode", "single", "fused")
    top.ignore(KERNELS)
    options: dict[str, Any] = {
        "block": "large",
        "layers": "m" * num_blocks,
        "embedding_dim": D,
        "vocab_size": top.need("vocab_size"),
        "num_heads": top.need("num_heads"),
        "bias": bias,
        "final_norm": final_norm,
        "eps": top.take("eps", 1e-6),
        "norm_eps": top.take("norm_eps", 1e-6),
        "gate_soft_cap": _cap(top, "gate_soft_cap", 15.0),
        "logit_soft_cap": _cap(top, "output_logit_soft_cap", 30.0),
    }
    options |= _widths(top, tensors, D, fused, 2.667 if hugging_face else 2.6667)
    notes: list[str] = []
    ignore: set[str] = set()
    if hugging_face and top.take("tie_word_embeddings", False):
        options["tie_weights"] = is_tied(tensors, "backbone.embeddings.weight", "lm_head.weight")
        if not options["tie_weights"]:
            notes.append(
                "tie_word_embeddings is true, but the head has its own weights, which are kept"
            )
    top.finish(allow_unknown=allow_unknown)
    try:
        config = ModelConfig.from_options(**options)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return Reading(
        config=config,
        rows=large_rows(num_blocks, hugging_face=hugging_face, fused=fused),
        may_lack=frozenset({"stack.norm.bias"}) if hugging_face else frozenset(),
        ignore=frozenset(ignore),
        notes=notes,
    )


def write_nxai(config: ModelConfig) -> tuple[dict[str, Any], list[str]]:
    """NX-AI's options for the same model, and notes for the user about differences.

    Raises:
        UserError: if an option has no counterpart in NX-AI's model; the message names it.
    """
    block, notes = _check_writable(config, "NX-AI's xlstm_large")
    values = {
        "embedding_dim": config.embedding_dim,
        "num_blocks": len(config.layers),
        **_shared(config, block),
        "add_out_norm": config.final_norm,
        "gate_soft_cap": block.gate_soft_cap or None,
        "output_logit_soft_cap": config.logit_soft_cap or None,
        "weight_mode": "single",
    }
    return values, notes


def write_hugging_face(
    config: ModelConfig, dtype: str, ids: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Hugging Face's options for the same model, and notes for the user about differences.

    Args:
        dtype: dtype of the stored weights.
        ids: ids of the tokens that begin, end and pad a text, if known.

    Raises:
        UserError: if an option has no counterpart in Hugging Face's model; the message names it.
    """
    who = "Hugging Face's xLSTM"
    block, notes = _check_writable(config, who)
    caps = {"gate_soft_cap": block.gate_soft_cap, "logit_soft_cap": config.logit_soft_cap}
    for name, cap in caps.items():
        if not cap:
            raise UserError(f"{name}=0.0 has no counterpart in {who}, which always has a limit")
    if not config.final_norm:
        raise UserError(f"final_norm=False has no counterpart in {who}, which always has one")
    unit, widths = HUGGING_FACE_UNIT, block.mlstm_dims(config.embedding_dim)
    has_cache = not any(width % unit for width in widths)
    if not has_cache:
        notes.append(
            f"keys are {widths[0]} channels wide and values {widths[1]}, but the cache of {who} "
            f"needs multiples of {unit}: the model generates there without a cache, slowly"
        )
    values = {
        "model_type": "xlstm",
        "architectures": ["xLSTMForCausalLM"],
        "dtype": dtype,
        "hidden_size": config.embedding_dim,
        "embedding_dim": config.embedding_dim,
        "num_hidden_layers": len(config.layers),
        "num_blocks": len(config.layers),
        **_shared(config, block),
        "add_out_norm": True,
        "gate_soft_cap": block.gate_soft_cap,
        "output_logit_soft_cap": config.logit_soft_cap,
        "weight_mode": "single",
        "tie_word_embeddings": False,
        "use_cache": has_cache,
        **{name: ids.get(name) for name in TOKEN_IDS},
    }
    return values, notes


TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Options that default to 0, 1 and 2 in Hugging Face, whatever tokens these are."""


def is_tied(tensors: Mapping[str, Tensor], embedding: str, head: str) -> bool:
    """Whether the head is tied to the embedding: it is missing, or has the same numbers."""
    if embedding not in tensors or head not in tensors:
        return True
    one, other = tensors[embedding], tensors[head]
    return one.shape == other.shape and one.dtype == other.dtype and one.equal(other)


def _shared(config: ModelConfig, block: LargeBlockConfig) -> dict[str, Any]:
    return {
        "num_heads": config.num_heads,
        "vocab_size": config.vocab_size,
        "use_bias": config.bias,
        "norm_eps": block.norm_eps,
        "eps": block.eps,
        "qk_dim_factor": block.qk_dim_factor,
        "v_dim_factor": block.v_dim_factor,
        "ffn_proj_factor": block.ff_factor,
        "ffn_round_up_to_multiple_of": block.ff_multiple,
        **NATIVE,
    }


def _blocks(top: Options) -> int:
    return top.need("num_hidden_layers", "num_blocks")


def _cap(top: Options, name: str, default: float) -> float:
    """A soft cap; null means no limit, which is 0 in openxlstm."""
    if name in top and top.raw(name) is None:
        return 0.0
    value = top.take(name, default)
    if value <= 0:
        top.fail(name, "must be positive, or null for no limit")
    return value


def _widths(
    top: Options, tensors: Mapping[str, Tensor], D: int, fused: bool, ff_factor: float
) -> dict[str, Any]:
    """Factors that give the widths of the tensors: those of the options if they fit."""
    block = "backbone.blocks.0."
    qk = rows_of(tensors, f"{block}mlstm_layer.q.weight")
    v = rows_of(tensors, f"{block}mlstm_layer.multihead_norm.weight")
    ff = rows_of(tensors, f"{block}ffn.proj_up.weight")
    if fused:
        both = rows_of(tensors, f"{block}mlstm_layer.qkv_opreact.weight")
        qk = both // 2 - v if both and v else None
        ff = (rows_of(tensors, f"{block}ffn.proj_up_gate_z.weight") or 0) // 2

    def factor(name: str, default: float, width: int | None) -> float:
        given = top.take(name, default)
        if not width or width < 0 or not 0 < given < 1e6:  # `to_ours` reports a wrong one
            return given
        return factor_of(width, D, given, lambda factor: int(factor * D))

    multiple = top.take("ffn_round_up_to_multiple_of", 64)
    if multiple < 1:
        top.fail("ffn_round_up_to_multiple_of", "must be 1 or more")
    given = top.take("ffn_proj_factor", ff_factor)
    if ff and 0 < given < 1e6 and _rounded(given * D, multiple) != ff:
        multiple = multiple if ff % multiple == 0 else 1
        given = factor_of(ff, D, given, lambda factor: _rounded(factor * D, multiple))
    return {
        "qk_dim_factor": factor("qk_dim_factor", 0.5, qk),
        "v_dim_factor": factor("v_dim_factor", 1.0, v),
        "ff_factor": given,
        "ff_multiple": multiple,
    }


def _rounded(width: float, multiple: int) -> int:
    """Rounds like the originals and like openxlstm's large block."""
    return int(width + multiple - 1) // multiple * multiple


def _check_writable(config: ModelConfig, who: str) -> tuple[LargeBlockConfig, list[str]]:
    """The options of the blocks, and notes about options that only matter in training.

    Raises:
        UserError: for the first option that the other model does not have.
    """
    block = config.block
    if not isinstance(block, LargeBlockConfig) or config.num_positions:
        is_large = isinstance(block, LargeBlockConfig)
        option = f"num_positions={config.num_positions}" if is_large else f"block={block.kind!r}"
        raise UserError(
            f"{option} has no counterpart in {who}: this model cannot be written in its format"
        )
    lost = [name for name in ("dropout", "embedding_dropout") if getattr(config, name)]
    notes = [f"{name}={getattr(config, name):g} is lost: {who} has no such option" for name in lost]
    return block, notes
