"""Names and layouts of all tensors, in the checkpoints of other libraries and in openxlstm.

A table has one row per tensor of openxlstm, or per group of tensors that the other library stores
in one. Each row has the other library's name, the conversion (`SAME` if only the name differs) and
openxlstm's name. Every conversion is a rearrangement, so that converting back gives the same bits.
Names in the table of a block follow these prefixes, where `{l}` is the index of the block:

| | theirs | ours |
|---|---|---|
| NX-AI `xLSTMLMModel` | `xlstm_block_stack.blocks.{l}.` | `stack.blocks.{l}.` |
| NX-AI `xLSTMBlockStack` alone | `blocks.{l}.` | `blocks.{l}.` |
| NX-AI `xLSTMLarge`, Hugging Face's xLSTM | `backbone.blocks.{l}.` | `stack.blocks.{l}.` |

D width, E inner width of an mLSTM block, F of a feed-forward, NH heads, DH = D/NH, K steps of the
convolution, QK and VD widths of all keys and all values, vocabulary V.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Shape = tuple[int, ...]
Layout = Literal["vanilla", "cuda"]
"""Layout of an sLSTM's recurrent weights and biases, by NX-AI's two implementations."""


@dataclass(frozen=True)
class Form:
    """A conversion between the other library's tensors ("theirs") and openxlstm's ("ours").

    read: theirs and the shapes of ours → ours. write: ours → theirs.
    """

    read: Callable[[Sequence[Tensor], Sequence[Shape]], Sequence[Tensor]]
    write: Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """Tensors of the other library and of openxlstm that hold the same numbers."""

    theirs: tuple[str, ...]
    form: Form
    ours: tuple[str, ...]

    def below(self, theirs: str, ours: str) -> "Row":
        """The same row with a prefix before the names of each side."""
        return Row(
            tuple(theirs + name for name in self.theirs),
            self.form,
            tuple(ours + name for name in self.ours),
        )


def row(theirs: str, form: Form, ours: str) -> Row:
    """A row of a table; several names are separated by spaces."""
    return Row(tuple(theirs.split()), form, tuple(ours.split()))


# ---- forms ------------------------------------------------------------------------------------

SAME = Form(lambda theirs, _: theirs, lambda ours: ours)

STACKED = Form(  # two tensors of theirs, i and f → ours (2, …)
    lambda theirs, _: [torch.stack(list(theirs))],
    lambda ours: ours[0].unbind(),
)

IN_ONE = Form(  # theirs, the rows of several of ours after each other
    lambda theirs, shapes: theirs[0].split([shape[0] for shape in shapes]),
    lambda ours: [torch.cat(list(ours))],
)

GATES_IN_ONE = Form(  # theirs (2·NH, …), first i, then f → ours (2, NH, …)
    lambda theirs, _: [theirs[0].unflatten(0, (2, -1))],
    lambda ours: [ours[0].flatten(0, 1)],
)

CONV = Form(  # theirs (C, 1, K) → ours (C, K)
    lambda theirs, _: [theirs[0].squeeze(1)],
    lambda ours: [ours[0].unsqueeze(1)],
)

SLSTM_GATES = Form(  # theirs four (NH, out, in) → ours (NH, 4, out, in)
    lambda theirs, _: [torch.stack(list(theirs), 1)],
    lambda ours: ours[0].unbind(1),
)

RECURRENT: dict[Layout, Form] = {  # → ours (NH, 4, out, in)
    "vanilla": Form(  # theirs (NH, 4·out, in)
        lambda theirs, _: [theirs[0].unflatten(1, (4, -1))],
        lambda ours: [ours[0].flatten(1, 2)],
    ),
    "cuda": Form(  # theirs (NH, in, 4·out)
        lambda theirs, _: [theirs[0].unflatten(2, (4, -1)).permute(0, 2, 3, 1)],
        lambda ours: [ours[0].permute(0, 3, 1, 2).flatten(2, 3)],
    ),
}

BIAS: dict[Layout, Form] = {  # theirs (4·D) → ours (NH, 4, DH)
    "vanilla": Form(  # theirs lies as (4, NH, DH)
        lambda theirs, shapes: [theirs[0].unflatten(0, (4, shapes[0][0], -1)).transpose(0, 1)],
        lambda ours: [ours[0].transpose(0, 1).flatten()],
    ),
    "cuda": Form(  # theirs lies as ours
        lambda theirs, shapes: [theirs[0].unflatten(0, (shapes[0][0], 4, -1))],
        lambda ours: [ours[0].flatten()],
    ),
}


def layout_of(recurrent: Shape) -> Layout:
    """The layout of NX-AI's recurrent weights, by their shape: DH and 4·DH are never equal."""
    return "vanilla" if len(recurrent) == 3 and recurrent[1] > recurrent[2] else "cuda"


# ---- NX-AI xlstm, the paper's blocks ----------------------------------------------------------

NXAI_TOP = (
    row("token_embedding.weight", SAME, "token_embedding.weight"),  # (V, D)
    row("lm_head.weight", SAME, "head.weight"),  # (V, D)
)

NXAI_NORM = row("post_blocks_norm.weight", SAME, "norm.weight")  # (D)

NXAI_MLSTM = (
    row("xlstm_norm.weight", SAME, "norm.weight"),  # (D), less 1
    row("xlstm.proj_up.weight", SAME, "layer.up_proj.weight"),  # (2E, D)
    row("xlstm.proj_up.bias", SAME, "layer.up_proj.bias"),  # (2E)
    row("xlstm.conv1d.conv.weight", CONV, "layer.conv.weight"),  # (E, K)
    row("xlstm.conv1d.conv.bias", SAME, "layer.conv.bias"),  # (E)
    row("xlstm.q_proj.weight", SAME, "layer.q_proj.weight"),  # (E/4, 4, 4)
    row("xlstm.k_proj.weight", SAME, "layer.k_proj.weight"),
    row("xlstm.v_proj.weight", SAME, "layer.v_proj.weight"),
    row("xlstm.q_proj.bias", SAME, "layer.q_proj.bias"),  # (E)
    row("xlstm.k_proj.bias", SAME, "layer.k_proj.bias"),
    row("xlstm.v_proj.bias", SAME, "layer.v_proj.bias"),
    row(
        "xlstm.mlstm_cell.igate.weight xlstm.mlstm_cell.fgate.weight",
        STACKED,
        "layer.gate_weight",  # (2, NH, 3E)
    ),
    row(
        "xlstm.mlstm_cell.igate.bias xlstm.mlstm_cell.fgate.bias",
        STACKED,
        "layer.gate_bias",  # (2, NH)
    ),
    row("xlstm.mlstm_cell.outnorm.weight", SAME, "layer.norm.weight"),  # (E)
    row("xlstm.learnable_skip", SAME, "layer.skip"),  # (E)
    row("xlstm.proj_down.weight", SAME, "layer.down_proj.weight"),  # (D, E)
    row("xlstm.proj_down.bias", SAME, "layer.down_proj.bias"),  # (D)
)


def nxai_slstm(layout: Layout) -> tuple[Row, ...]:
    """The rows of an sLSTM block, for one layout of its recurrent weights and biases.

    NX-AI's names of two gates are swapped: its module `fgate` feeds the cell's input gate, and
    `igate` the forget gate. All of its checkpoints are so, and this table follows them. The cell's
    own tensors, recurrent weights and biases, have the order i, f, z, o, as in openxlstm.
    """
    return (
        row("xlstm_norm.weight", SAME, "norm.weight"),  # (D), less 1
        row("xlstm.conv1d.conv.weight", CONV, "layer.conv.weight"),  # (D, K)
        row("xlstm.conv1d.conv.bias", SAME, "layer.conv.bias"),  # (D)
        row(
            "xlstm.fgate.weight "  # feeds i
            "xlstm.igate.weight "  # feeds f
            "xlstm.zgate.weight "
            "xlstm.ogate.weight",
            SLSTM_GATES,
            "layer.input_weight",  # (NH, 4, DH, DH)
        ),
        row(
            "xlstm.slstm_cell._recurrent_kernel_",
            RECURRENT[layout],
            "layer.recurrent_weight",  # (NH, 4, DH, DH)
        ),
        row(
            "xlstm.slstm_cell._bias_",
            BIAS[layout],
            "layer.bias",  # (NH, 4, DH)
        ),
        row("xlstm.group_norm.weight", SAME, "layer.norm.weight"),  # (D)
        row("ffn_norm.weight", SAME, "ff_norm.weight"),  # (D), less 1
        row("ffn.proj_up.weight", SAME, "ff.up_proj.weight"),  # (2F, D)
        row("ffn.proj_up.bias", SAME, "ff.up_proj.bias"),  # gate first
        row("ffn.proj_down.weight", SAME, "ff.down_proj.weight"),  # (D, F)
        row("ffn.proj_down.bias", SAME, "ff.down_proj.bias"),  # (D)
    )


# ---- large blocks: NX-AI xlstm_large, and Hugging Face ----------------------------------------

NXAI_LARGE_TOP = (
    row("embedding.weight", SAME, "token_embedding.weight"),  # (V, D)
    row("lm_head.weight", SAME, "head.weight"),  # (V, D)
)

HUGGING_FACE_TOP = (
    row("backbone.embeddings.weight", SAME, "token_embedding.weight"),  # (V, D)
    row("lm_head.weight", SAME, "head.weight"),  # (V, D)
)
"""The embedding is the only tensor whose name differs from NX-AI's."""

LARGE_NORM = (
    row("backbone.out_norm.weight", SAME, "stack.norm.weight"),  # (D)
    row("backbone.out_norm.bias", SAME, "stack.norm.bias"),  # Hugging Face's never has one
)

LARGE_BLOCK = (
    row("norm_mlstm.weight", SAME, "norm.weight"),  # (D)
    row("norm_mlstm.bias", SAME, "norm.bias"),
    row("mlstm_layer.multihead_norm.weight", SAME, "layer.norm.weight"),  # (VD)
    row("mlstm_layer.multihead_norm.bias", SAME, "layer.norm.bias"),
    row("mlstm_layer.out_proj.weight", SAME, "layer.out_proj.weight"),  # (D, VD)
    row("mlstm_layer.out_proj.bias", SAME, "layer.out_proj.bias"),
    row("norm_ffn.weight", SAME, "ff_norm.weight"),  # (D)
    row("norm_ffn.bias", SAME, "ff_norm.bias"),
    row("ffn.proj_down.weight", SAME, "ff.down_proj.weight"),  # (D, F)
    row("ffn.proj_down.bias", SAME, "ff.down_proj.bias"),
)

LARGE_SINGLE = (
    row("mlstm_layer.q.weight", SAME, "layer.q_proj.weight"),  # (QK, D)
    row("mlstm_layer.q.bias", SAME, "layer.q_proj.bias"),
    row("mlstm_layer.k.weight", SAME, "layer.k_proj.weight"),  # (QK, D)
    row("mlstm_layer.k.bias", SAME, "layer.k_proj.bias"),
    row("mlstm_layer.v.weight", SAME, "layer.v_proj.weight"),  # (VD, D)
    row("mlstm_layer.v.bias", SAME, "layer.v_proj.bias"),
    row("mlstm_layer.ogate_preact.weight", SAME, "layer.o_proj.weight"),  # (VD, D)
    row("mlstm_layer.ogate_preact.bias", SAME, "layer.o_proj.bias"),
    row(
        "mlstm_layer.igate_preact.weight mlstm_layer.fgate_preact.weight",
        STACKED,
        "layer.gate_weight",  # (2, NH, D)
    ),
    row(
        "mlstm_layer.igate_preact.bias mlstm_layer.fgate_preact.bias",
        STACKED,
        "layer.gate_bias",  # (2, NH)
    ),
    row("ffn.proj_up_gate.weight", SAME, "ff.gate_proj.weight"),  # (F, D)
    row("ffn.proj_up_gate.bias", SAME, "ff.gate_proj.bias"),
    row("ffn.proj_up.weight", SAME, "ff.up_proj.weight"),  # (F, D)
    row("ffn.proj_up.bias", SAME, "ff.up_proj.bias"),
)

LARGE_FUSED = (
    row(
        "mlstm_layer.qkv_opreact.weight",  # (2·QK + 2·VD, D)
        IN_ONE,
        "layer.q_proj.weight layer.k_proj.weight layer.v_proj.weight layer.o_proj.weight",
    ),
    row(
        "mlstm_layer.qkv_opreact.bias",
        IN_ONE,
        "layer.q_proj.bias layer.k_proj.bias layer.v_proj.bias layer.o_proj.bias",
    ),
    row("mlstm_layer.ifgate_preact.weight", GATES_IN_ONE, "layer.gate_weight"),  # (2·NH, D)
    row("mlstm_layer.ifgate_preact.bias", GATES_IN_ONE, "layer.gate_bias"),
    row(
        "ffn.proj_up_gate_z.weight",  # (2F, D)
        IN_ONE,
        "ff.gate_proj.weight ff.up_proj.weight",
    ),
    row("ffn.proj_up_gate_z.bias", IN_ONE, "ff.gate_proj.bias ff.up_proj.bias"),
)


# ---- tables of a whole model ------------------------------------------------------------------


def nxai_stack_rows(layers: str, layouts: Sequence[Layout] | Layout = "vanilla") -> list[Row]:
    """The rows of `xLSTMBlockStack`, for blocks given by letters; `layouts` are per block."""
    found: Sequence[Layout] = layouts if not isinstance(layouts, str) else [layouts for _ in layers]
    rows = [NXAI_NORM]
    for block, (letter, layout) in enumerate(zip(layers, found, strict=True)):
        table = NXAI_MLSTM if letter == "m" else nxai_slstm(layout)
        rows += [entry.below(f"blocks.{block}.", f"blocks.{block}.") for entry in table]
    return rows


def nxai_rows(layers: str, layouts: Sequence[Layout] | Layout = "vanilla") -> list[Row]:
    """The rows of `xLSTMLMModel`, for blocks given by letters; `layouts` are per block."""
    stack = nxai_stack_rows(layers, layouts)
    return [*NXAI_TOP, *(entry.below("xlstm_block_stack.", "stack.") for entry in stack)]


def large_rows(num_blocks: int, *, hugging_face: bool, fused: bool = False) -> list[Row]:
    """The rows of `xLSTMLarge`, or of Hugging Face's `xLSTMForCausalLM`."""
    rows = [*(HUGGING_FACE_TOP if hugging_face else NXAI_LARGE_TOP), *LARGE_NORM]
    table = LARGE_BLOCK + (LARGE_FUSED if fused else LARGE_SINGLE)
    for block in range(num_blocks):
        theirs, ours = f"backbone.blocks.{block}.", f"stack.blocks.{block}."
        rows += [entry.below(theirs, ours) for entry in table]
    return rows
