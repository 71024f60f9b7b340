"""Compares openxlstm.ops.mlstm and openxlstm.ops.slstm, forward and backward, with other code.

One repetition computes the output and the gradient of every input, in float32 on the CPU. Inputs
are random, with mostly open forget gates, as in training. Before a shape is timed, output and
gradients are compared with NX-AI's if its package is installed, else with openxlstm.reference. A
shape with wrong results is not timed.

Peers of the mLSTM, on the same tensors:
    NX-AI parallel    package xlstm, parallel_stabilized_simple: what its v1 models run on a CPU
    NX-AI chunkwise   package mlstm_kernels, chunkwise--native_autograd, chunk size 64
    attention         F.scaled_dot_product_attention, causal: other mathematics, same shapes

Peers of the sLSTM:
    NX-AI cell        package xlstm, sLSTMCell, backend "vanilla": the same scan
    NX-AI block       the same inside its block: norms, convolution, gates, feed-forward
    nn.LSTM           width NH·DH: recurrence across all heads, and its input projection on top
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import openxlstm.ops
from openxlstm.bench import peers
from openxlstm.bench.comparison import Comparison, Entry, Verdict
from openxlstm.bench.forward_backward import (
    ForwardBackward,
    differentiated,
    disagreement,
    module_pass,
)
from openxlstm.bench.goals import find_goal
from openxlstm.bench.limits import Work
from openxlstm.bench.peers import Absent
from openxlstm.bench.work import mlstm_work, slstm_work
from openxlstm.ops.dispatch import CallContext, Request

MLSTM_SHAPES = ((16, 4, 256, 64), (16, 4, 256, 32), (4, 4, 1024, 96), (1, 4, 4096, 64))
"""B, NH, T, D."""
SLSTM_SHAPES = ((16, 256, 4, 32), (16, 256, 4, 64), (16, 256, 4, 96), (1, 1024, 4, 96))
"""B, T, NH, DH."""
TOLERANCE = 1e-4
"""Largest relative error of an output or a gradient in float32."""


def comparisons(quick: bool) -> list[tuple[str, Callable[[], Comparison]]]:
    """The title and the constructor of each comparison; only the first shapes if `quick`."""
    count = 1 if quick else None
    return [
        *(
            (f"mlstm {shape}", lambda shape=shape: mlstm_comparison(*shape))
            for shape in MLSTM_SHAPES[:count]
        ),
        *(
            (f"slstm {shape}", lambda shape=shape: slstm_comparison(*shape))
            for shape in SLSTM_SHAPES[:count]
        ),
    ]


def mlstm_comparison(B: int, NH: int, T: int, D: int) -> Comparison:
    """The comparison of the mLSTM at one shape."""
    q, k, v, dh = (torch.randn(B, NH, T, D) for _ in range(4))
    i_preact, f_preact = torch.randn(B, NH, T), torch.randn(B, NH, T) + 4
    inputs = [x.requires_grad_() for x in (q, k, v, i_preact, f_preact)]

    def gradients_of(function: Callable[..., Tensor]) -> ForwardBackward:
        return differentiated(lambda: function(*inputs), inputs, dh)

    def backend(name: str) -> ForwardBackward:
        def run(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
            return openxlstm.ops.mlstm(q, k, v, i, F.logsigmoid(f), backend=name)[0]

        return gradients_of(run)

    def attention() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    parallel = peers.find("xlstm", lambda: gradients_of(peers.mlstm_parallel()))
    chunkwise = peers.find("mlstm_kernels", lambda: gradients_of(peers.mlstm_chunkwise()))
    return op_comparison(
        "mlstm",
        {"B": B, "NH": NH, "T": T, "DQK": D, "DHV": D},
        backend,
        {
            "NX-AI parallel": parallel,
            "NX-AI chunkwise": chunkwise,
            "attention": differentiated(attention, inputs[:3], dh),
        },
        ("NX-AI parallel", "NX-AI chunkwise"),
        mlstm_work(B, NH, T, D, D),
    )


def slstm_comparison(B: int, T: int, NH: int, DH: int) -> Comparison:
    """The comparison of the sLSTM at one shape."""
    x, dh = torch.randn(B, T, NH, 4, DH), torch.randn(B, T, NH, DH)
    recurrent_weight = torch.randn(NH, 4, DH, DH) * 0.5 * DH**-0.5
    bias = torch.zeros(NH, 4, DH)
    bias[:, 1] = 4  # the forget gate
    inputs = [tensor.requires_grad_() for tensor in (x, recurrent_weight, bias)]

    def backend(name: str) -> ForwardBackward:
        def run() -> Tensor:
            return openxlstm.ops.slstm(x, recurrent_weight, bias, backend=name)[0]

        return differentiated(run, inputs, dh)

    width = NH * DH
    return op_comparison(
        "slstm",
        {"B": B, "T": T, "NH": NH, "DH": DH},
        backend,
        {
            "NX-AI cell": peers.find("xlstm", lambda: peers.nxai_slstm_cell(inputs, dh)),
            "NX-AI block": peers.find("xlstm", lambda: peers.nxai_slstm_block(B, T, NH, DH)),
            "nn.LSTM": module_pass(nn.LSTM(width, width, batch_first=True), B, T, width),
        },
        ("NX-AI cell",),
        slstm_work(B, T, NH, DH),
    )


def op_comparison(
    op: str,
    sizes: dict[str, int],
    backend: Callable[[str], ForwardBackward],
    others: Mapping[str, ForwardBackward | Absent],
    judges: tuple[str, ...],
    work: Work,
) -> Comparison:
    """Compares the backends of an op with peers; the first available judge has the right result."""
    mine = {name: backend(name) for name in fast_backends(op, sizes)}
    first, *rest = (f"openxlstm {name}" for name in mine)
    entries = [Entry(name=first, ours=True, work=work)]
    entries += [Entry(name=name, ours=True, work=work, beside=first) for name in rest]
    for name, peer in others.items():
        goal = find_goal(op, name, sizes["T"])
        absent = peer.why if isinstance(peer, Absent) else None
        entries.append(Entry(name=name, beside=first, goal=goal, absent=absent))
    here = {name: peer for name, peer in others.items() if not isinstance(peer, Absent)}
    judge = next((name for name in judges if name in here), "openxlstm.reference")

    def check() -> Verdict:
        right_answer = here[judge]() if judge in here else backend("reference")()
        errors = {
            name: disagreement(repetition(), right_answer) for name, repetition in mine.items()
        }
        wrong = [name for name, error in errors.items() if not error <= TOLERANCE]
        if wrong:
            differs = ", ".join(f"{name} by {errors[name]:.1e}" for name in wrong)
            return Verdict(False, f"differs from {judge}: {differs}", errors[wrong[0]])
        error = max(errors.values())
        return Verdict(True, f"within {error:.0e} of {judge}", error)

    return Comparison(
        part="ops",
        name=op,
        sizes=sizes,
        entries=tuple(entries),
        repetitions={
            **{f"openxlstm {name}": repetition for name, repetition in mine.items()},
            **here,
        },
        check=check,
    )


def fast_backends(op: str, sizes: dict[str, int]) -> list[str]:
    """Names of the backends that can run an op of these sizes here, the preferred one first.

    Slow backends, which exist for comparison, are skipped.
    """
    request = Request("cpu", torch.float32, sizes, CallContext.PLAIN)
    return [
        backend.name
        for backend in openxlstm.ops.TABLE[op]
        if not backend.slow and backend.refuses(request) is None
    ]
