"""One step of a whole model on the native CPU backend (`cpu/step_kernel.h`).

A plan says where weights, states and results are, as 64-bit words in the order of
`cpu/step_args.h`. It holds addresses: its owner keeps the tensors alive and where they are.

Each kind of block has its weights as a NamedTuple whose fields are the slots of the C++ side, each
annotated with its shape; `matrix` marks those in the dtype of the model, all others are float32.

B batch · D width · NH heads · DH, DQK, DHV width per head · E inner width · F feed-forward ·
K steps of the convolution · V vocabulary · P positions · I features
"""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from openxlstm.ops.native import backend

_Tensor = Tensor | None


class MLSTMStepWeights(NamedTuple):
    """A paper block with an mLSTM; q, k and v are maps of `side` channels each."""

    norm: Annotated[Tensor, "D"]
    conv: Annotated[_Tensor, "E K"]
    conv_bias: Annotated[_Tensor, "E"]
    up: Annotated[Tensor, "matrix 2*E D"]
    up_bias: Annotated[_Tensor, "2*E"]
    q: Annotated[Tensor, "blocks side side"]
    k: Annotated[Tensor, "blocks side side"]
    v: Annotated[Tensor, "blocks side side"]
    q_bias: Annotated[_Tensor, "E"]
    k_bias: Annotated[_Tensor, "E"]
    v_bias: Annotated[_Tensor, "E"]
    gate: Annotated[Tensor, "matrix 2 NH 3*E"]
    gate_bias: Annotated[Tensor, "2 NH"]
    head_norm: Annotated[Tensor, "E"]
    skip: Annotated[Tensor, "E"]
    down: Annotated[Tensor, "matrix D E"]
    down_bias: Annotated[_Tensor, "D"]


class SLSTMStepWeights(NamedTuple):
    """A paper block with an sLSTM, and its feed-forward where it has one."""

    norm: Annotated[Tensor, "D"]
    conv: Annotated[_Tensor, "D K"]
    conv_bias: Annotated[_Tensor, "D"]
    input: Annotated[Tensor, "matrix NH 4 DH DH"]
    bias: Annotated[Tensor, "NH 4 DH"]
    recurrent: Annotated[Tensor, "matrix NH 4 DH DH"]
    head_norm: Annotated[Tensor, "D"]
    ff_norm: Annotated[_Tensor, "D"] = None
    ff_up: Annotated[_Tensor, "matrix 2*F D"] = None
    ff_up_bias: Annotated[_Tensor, "2*F"] = None
    ff_down: Annotated[_Tensor, "matrix D F"] = None
    ff_down_bias: Annotated[_Tensor, "D"] = None


class LargeStepWeights(NamedTuple):
    """A large block."""

    norm: Annotated[Tensor, "D"]
    norm_bias: Annotated[_Tensor, "D"]
    q: Annotated[Tensor, "matrix NH*DQK D"]
    k: Annotated[Tensor, "matrix NH*DQK D"]
    v: Annotated[Tensor, "matrix NH*DHV D"]
    o: Annotated[Tensor, "matrix NH*DHV D"]
    gate: Annotated[Tensor, "matrix 2 NH D"]
    q_bias: Annotated[_Tensor, "NH*DQK"]
    k_bias: Annotated[_Tensor, "NH*DQK"]
    v_bias: Annotated[_Tensor, "NH*DHV"]
    o_bias: Annotated[_Tensor, "NH*DHV"]
    gate_bias: Annotated[Tensor, "2 NH"]
    head_norm: Annotated[Tensor, "NH*DHV"]
    head_norm_bias: Annotated[_Tensor, "NH*DHV"]
    out: Annotated[Tensor, "matrix D NH*DHV"]
    out_bias: Annotated[_Tensor, "D"]
    ff_norm: Annotated[Tensor, "D"]
    ff_norm_bias: Annotated[_Tensor, "D"]
    ff_gate: Annotated[Tensor, "matrix F D"]
    ff_up: Annotated[Tensor, "matrix F D"]
    ff_down: Annotated[Tensor, "matrix D F"]
    ff_gate_bias: Annotated[_Tensor, "F"]
    ff_up_bias: Annotated[_Tensor, "F"]
    ff_down_bias: Annotated[_Tensor, "D"]


class BareMLSTMStepWeights(NamedTuple):
    """A bare block with an mLSTM; `proj` is the map in front of it, None for none."""

    proj: Annotated[_Tensor, "matrix D D"]
    proj_bias: Annotated[_Tensor, "D"]
    qkvo: Annotated[Tensor, "matrix 4*D D"]
    qkvo_bias: Annotated[_Tensor, "4*D"]
    gate: Annotated[Tensor, "matrix 2 NH D"]
    gate_bias: Annotated[Tensor, "2 NH"]


class BareSLSTMStepWeights(NamedTuple):
    """A bare block with an sLSTM; `proj` is the map in front of it, None for none."""

    proj: Annotated[_Tensor, "matrix D D"]
    proj_bias: Annotated[_Tensor, "D"]
    input: Annotated[Tensor, "matrix NH 4 DH DH"]
    bias: Annotated[Tensor, "NH 4 DH"]
    recurrent: Annotated[Tensor, "matrix NH 4 DH DH"]


class ModelStepWeights(NamedTuple):
    """The weights before and after the blocks; `proj` is the map of features, None for none."""

    tokens: Annotated[_Tensor, "matrix V D"] = None
    positions: Annotated[_Tensor, "matrix P D"] = None
    proj: Annotated[_Tensor, "matrix D I"] = None
    proj_bias: Annotated[_Tensor, "D"] = None
    norm: Annotated[_Tensor, "D"] = None
    norm_bias: Annotated[_Tensor, "D"] = None
    head: Annotated[_Tensor, "matrix V D"] = None


StepWeights = (
    MLSTMStepWeights
    | SLSTMStepWeights
    | LargeStepWeights
    | BareMLSTMStepWeights
    | BareSLSTMStepWeights
)
"""The weights of a block, the kinds in the order of the C++ side."""

_KINDS = get_args(StepWeights)
_TOGETHER = ("conv", "conv_bias"), ("ff_norm", "ff_up", "ff_down")
"""Slots that are all there or all None."""
_STATES = {
    True: dict.fromkeys("hcnm", "B NH DH"),  # sLSTM
    False: {"C": "B NH DQK DHV", "n": "B NH DQK", "m": "B NH"},
}
_MODEL_NUMBERS = "B", "D", "V", "NH", "num_layers", "num_positions", "I", "narrow", "rms"
_MODEL_REALS = "norm_eps", "cap"
_LAYER_NUMBERS = "inner", "DQK", "DHV", "K", "side", "exp_gate"
_LAYER_REALS = "eps", "cap"
_MOST = max(len(kind._fields) for kind in _KINDS)
_MODEL = struct.Struct(f"={len(_MODEL_NUMBERS)}q2d{len(ModelStepWeights._fields) + 2}q")
_LAYER = struct.Struct(f"=q{len(_LAYER_NUMBERS)}q2d{_MOST + 5}q")


class LayerPlan(NamedTuple):
    """One block of the model."""

    weights: StepWeights
    state: Sequence[Tensor]
    """C (B, NH, DQK, DHV), n, m of an mLSTM; h, c, n, m (B, NH, DH) of an sLSTM. Overwritten."""
    window: Tensor | None = None
    """The convolution's last inputs (B, K-1, E or D), overwritten; None where K ≤ 1."""
    eps: float = 0.0
    """Added to an mLSTM's denominator."""
    gate_soft_cap: float = 0.0
    """Bound of a large block's gates; 0 for none."""
    exp_forget_gate: bool = False
    """Whether an sLSTM's forget gate is exp instead of a sigmoid."""

    def _sizes(self, model: dict[str, int]) -> dict[str, int]:
        w, D, NH = self.weights, model["D"], model["NH"]
        inner, K, side, DQK = 0, 0, 1, D // NH
        DHV = DQK
        match w:
            case LargeStepWeights():
                inner, DQK, DHV = _size(w.ff_down, 1), _size(w.q, 0) // NH, _size(w.v, 0) // NH
            case MLSTMStepWeights():
                inner, K, side = _size(w.down, 1), _size(w.conv, 1), max(_size(w.q, 2), 1)
                DQK = DHV = inner // NH
            case SLSTMStepWeights():
                inner, K = _size(w.ff_down, 1), _size(w.conv, 1)
            case BareMLSTMStepWeights():
                inner = D
            case BareSLSTMStepWeights():
                pass
        return {
            **model, "inner": inner, "E": inner, "F": inner, "DH": D // NH, "DQK": DQK, "DHV": DHV,
            "K": K, "side": side, "blocks": inner // side, "exp_gate": self.exp_forget_gate,
            "back": max(K - 1, 0),
        }  # fmt: skip

    def pack(self, model: dict[str, int], matrices: torch.dtype, where: str) -> bytes:
        """The block as `step` reads it, in a model of these sizes and this dtype.

        Raises:
            ValueError: if a tensor has another dtype, device, shape or layout than its slot.
        """
        weights, sizes = self.weights, self._sizes(model)
        _check_weights(weights, sizes, matrices, where)
        is_slstm = isinstance(weights, SLSTMStepWeights | BareSLSTMStepWeights)
        expected = _STATES[is_slstm]
        if len(self.state) != len(expected):
            raise ValueError(f"{where} needs the state {', '.join(expected)}")
        for (name, shape), part in zip(expected.items(), self.state, strict=True):
            _check(part, shape, sizes, torch.float32, f"{where}.state.{name}")
        if sizes["back"] > 0:
            width = "D" if is_slstm else "E"
            _check(self.window, f"B back {width}", sizes, torch.float32, f"{where}.window")
        padding = (None,) * (_MOST - len(weights))
        return _LAYER.pack(
            _KINDS.index(type(weights)), *(sizes[name] for name in _LAYER_NUMBERS),
            self.eps, self.gate_soft_cap,
            *map(_address, (*weights, *padding, self.window, *self.state)),
            *(0,) * (4 - len(self.state)),
        )  # fmt: skip


class PackedPlan(NamedTuple):
    """A plan as the extension reads it, and the input that it takes."""

    words: bytes
    shape: tuple[int, ...]
    dtype: torch.dtype


class StepPlan(NamedTuple):
    """The whole model, and the rows that it reads for."""

    batch_size: int
    dim: int
    """Width of the blocks, D."""
    num_heads: int
    weights: ModelStepWeights
    layers: Sequence[LayerPlan]
    out: Tensor
    """Where the result goes (B, V), without a head (B, D)."""
    dtype: torch.dtype
    """Dtype of the matrices: float32 or bfloat16."""
    position: Tensor | None = None
    """Tokens read so far (B,) int64, overwritten; None where features are read."""
    num_features: int = 0
    """I of an input (B, I); 0 where tokens are read."""
    rms_norm: bool = False
    """Whether the norms of rows are those of large blocks."""
    norm_eps: float = 0.0
    logit_soft_cap: float = 0.0
    """Bound of the logits; 0 for none."""

    def pack(self) -> PackedPlan:
        """The plan as `step` reads it.

        Raises:
            ValueError: if a tensor has another dtype, device, shape or layout than its slot; the
                message names the slot.
        """
        w, B, D, NH, I = self.weights, self.batch_size, self.dim, self.num_heads, self.num_features
        if min(B, D, NH) < 1 or D % NH != 0:
            raise ValueError(f"a batch of {B}, width {D} and {NH} heads do not fit together")
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"matrices must be float32 or bfloat16, not {self.dtype}")
        V, P = _size(w.tokens if w.head is None else w.head, 0), _size(w.positions, 0)
        sizes = {
            "B": B, "D": D, "V": V, "NH": NH, "num_layers": len(self.layers), "num_positions": P,
            "P": P, "I": I, "narrow": self.dtype == torch.bfloat16, "rms": self.rms_norm,
        }  # fmt: skip
        _check_weights(w, sizes, self.dtype, "model")
        _check(self.out, "B D" if w.head is None else "B V", sizes, torch.float32, "out")
        if I == 0:
            if w.tokens is None:
                raise ValueError("model.tokens is missing, and there are no features")
            _check(self.position, "B", sizes, torch.int64, "position")
        elif w.proj is None and I != D:
            raise ValueError(f"model.proj is missing: {I} features for a width of {D}")
        words = _MODEL.pack(
            *(sizes[name] for name in _MODEL_NUMBERS), self.norm_eps, self.logit_soft_cap,
            *map(_address, (*w, self.position, self.out)),
        )  # fmt: skip
        layers = enumerate(self.layers)
        words += b"".join(layer.pack(sizes, self.dtype, f"layers[{i}]") for i, layer in layers)
        return PackedPlan(words, (B, I) if I else (B,), torch.float32 if I else torch.int64)


def step(plan: PackedPlan, x: Tensor, name: str = "x") -> None:
    """Reads one step: tokens (B,) int64 or features (B, I) float32, contiguous and on the CPU.
    States and results of the plan are overwritten.

    Args:
        name: what the caller calls x.

    Raises:
        ValueError: if x has another shape, dtype, device or layout.
        IndexError: if a token is none of the model's; nothing has changed then.
    """
    words, shape, dtype = plan
    if x.shape != shape or x.dtype != dtype or not x.is_cpu or not x.is_contiguous():
        raise ValueError(f"{name} must be {_words(shape, dtype)}, not {_found(x)}")
    backend.extension().step(words, x.data_ptr())


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _size(x: Tensor | None, dim: int) -> int:
    """A size of x, 0 where it has none: its check then names it."""
    return 0 if x is None or x.dim() <= dim else x.shape[dim]


def _check_weights(weights: Any, sizes: dict[str, int], matrices: torch.dtype, where: str) -> None:
    for name, (shape, is_matrix, is_optional) in _SLOTS[type(weights)].items():
        x = getattr(weights, name)
        if x is not None or not is_optional:
            dtype = matrices if is_matrix else torch.float32
            _check(x, shape, sizes, dtype, f"{where}.{name}")
    for names in _TOGETHER:
        found = [getattr(weights, name, None) is None for name in names]
        if any(found) and not all(found):
            raise ValueError(f"{where}: of {', '.join(names)} some are there and some are None")


def _check(
    x: Tensor | None, shape: str, sizes: dict[str, int], dtype: torch.dtype, where: str
) -> None:
    expected = tuple(
        math.prod(sizes[part] if part in sizes else int(part) for part in size.split("*"))
        for size in shape.split()
    )
    if x is None:
        raise ValueError(f"{where} is missing: it must be {_words(expected, dtype)}")
    fits = x.shape == expected and x.dtype == dtype
    if not fits or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError(f"{where} ({shape}) must be {_words(expected, dtype)}, not {_found(x)}")


def _words(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{shape} {dtype}, contiguous and on the CPU"


def _found(x: Tensor) -> str:
    layout = "contiguous" if x.is_contiguous() else f"with strides {x.stride()}"
    return f"{tuple(x.shape)} {x.dtype}, {layout} and on {x.device}"


def _slots(weights: type) -> dict[str, tuple[str, bool, bool]]:
    """Per slot its shape, whether it is a matrix, and whether it may be None."""
    slots = {}
    for name, hint in get_type_hints(weights, include_extras=True).items():
        (text,) = hint.__metadata__
        shape = text.removeprefix("matrix ")
        slots[name] = shape, shape != text, hint.__origin__ != Tensor
    return slots


_SLOTS = {kind: _slots(kind) for kind in (*_KINDS, ModelStepWeights)}


def _check_layout() -> None:
    """Compares the words of a plan with those that the extension was built for."""

    def names(*fields: str) -> str:
        return ", ".join(fields)

    ours = {
        "Step": (
            names(*_MODEL_NUMBERS), names(*_MODEL_REALS), names(*ModelStepWeights._fields),
            _MODEL.size,
        ),
        "StepLayer": (names(*_LAYER_NUMBERS), names(*_LAYER_REALS), _MOST, _LAYER.size),
        "blocks": tuple(names(*kind._fields) for kind in _KINDS),
    }  # fmt: skip
    theirs = backend.extension().step_layout()
    assert ours == theirs, (
        "the extension was built from other sources: run `python setup.py build_ext --inplace`"
    )


if backend.missing() is None:
    _check_layout()
