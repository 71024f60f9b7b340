"""Times openxlstm.ops.mlstm and openxlstm.ops.slstm, forward and backward, beside their peers.

    python benchmarks/ops.py [--quick] [--op mlstm|slstm] [--json FILE]

One turn computes the output and the gradient of every input, in float32 on the CPU. Inputs are
random, the forget gates mostly open, as in training. Before a shape is timed, output and gradients
are compared with NX-AI's where its packages are installed, else with openxlstm.reference; where
they do not agree the shape is not timed, and the exit code is 1.

Peers of the mLSTM, on the same tensors:
    NX-AI parallel    package `xlstm`, parallel_stabilized_simple: what its v1 models run on a CPU
    NX-AI chunkwise   package `mlstm_kernels`, chunkwise--native_autograd, chunk size 64
    attention         F.scaled_dot_product_attention, causal: other mathematics, same shapes

Peers of the sLSTM:
    NX-AI cell        package `xlstm`, sLSTMCell, backend "vanilla": the same scan
    NX-AI block       the same inside its block: norms, convolution, gates, feed-forward
    nn.LSTM           width NH·DH: recurrence across all heads, and its input projection on top

GFLOP/s counts the useful arithmetic of the mathematics, the same whatever code ran:
    mLSTM, a head and step, chunks of L = 64: 3·L·(DQK + DHV) within the chunk (two products forward
        and four backward, each on the causal half only) and 12·DQK·DHV for the memory (read and
        written forward; both operands' gradients of each backward). Recomputation, masked halves
        and exponentials are not counted.
    sLSTM, a head and step: 24·DH² (recurrent product, its transpose, gradient of the weight).
        Gates are not counted.
The limit is the time of that arithmetic at the speed of a large matrix product, or of reading each
input and writing each result once at the speed of a large copy, whichever is longer.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from timing import Limits, Timing, alternate, environment, installed, measure_limits, write_json
from torch import Tensor, nn

import openxlstm.ops
from openxlstm.ops.dispatch import Request

MLSTM_SHAPES = ((16, 4, 256, 64), (16, 4, 256, 32), (4, 4, 1024, 96), (1, 4, 4096, 64))
"""B, NH, T, D."""
SLSTM_SHAPES = ((16, 256, 4, 32), (16, 256, 4, 64), (16, 256, 4, 96), (1, 1024, 4, 96))
"""B, T, NH, DH."""
CHUNK = 64
TOLERANCE = 1e-4
"""Largest relative error, ‖ours - theirs‖ / ‖theirs‖, of an output or a gradient in float32."""

Run = Callable[[], list[Tensor]]
"""One turn: the output, then the gradients."""


@dataclass(frozen=True)
class Case:
    """One op at one shape."""

    op: str
    sizes: dict[str, int]
    ours: Run
    judge: tuple[str, Run]
    """Whose answers ours must match."""
    peers: dict[str, Run | None]
    """None for a peer that is not installed."""
    flops: int
    bytes: int
    """Least memory traffic: inputs read, results written."""
    backend: str
    """Name of openxlstm's backend that runs it."""

    @property
    def shape(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.sizes.items())

    def limit(self, limits: Limits) -> float:
        """Seconds that the machine needs at least."""
        return max(self.flops / limits.gflops, self.bytes / limits.gbytes) / 1e9


def chosen_backend(op: str, sizes: dict[str, int]) -> str:
    """The name of the backend that runs an op of these sizes when none is asked for."""
    backends = importlib.import_module(f"openxlstm.ops.{op}").BACKENDS
    request = Request("cpu", torch.float32, tuple(sizes.items()), wants_grad=True)
    return next(backend.name for backend in backends if backend.refuses(request) is None)


def differentiated(function: Callable[[], Tensor], inputs: list[Tensor], dh: Tensor) -> Run:
    """The turn that calls `function` and takes the gradients of `inputs` for the gradient `dh`."""

    def run() -> list[Tensor]:
        h = function()
        return [h.detach(), *torch.autograd.grad(h, inputs, dh)]

    return run


def mlstm_case(B: int, NH: int, T: int, D: int, backend: str | None) -> Case:
    q, k, v, dh = (torch.randn(B, NH, T, D) for _ in range(4))
    i_preact, f_preact = torch.randn(B, NH, T), torch.randn(B, NH, T) + 4
    inputs = [x.requires_grad_() for x in (q, k, v, i_preact, f_preact)]

    def turn(function: Callable[..., Tensor]) -> Run:
        return differentiated(lambda: function(*inputs), inputs, dh)

    def ours(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        return openxlstm.ops.mlstm(q, k, v, i, F.logsigmoid(f), backend=backend)[0]

    def reference(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
        return openxlstm.ops.mlstm(q, k, v, i, F.logsigmoid(f), backend="reference")[0]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    peers: dict[str, Run | None] = {
        "NX-AI parallel": turn(nxai_parallel()) if installed("xlstm") else None,
        "NX-AI chunkwise": turn(nxai_chunkwise()) if installed("mlstm_kernels") else None,
        "attention": differentiated(lambda: attention(q, k, v), inputs[:3], dh),
    }
    judges = (*peers.items(), ("openxlstm.reference", turn(reference)))
    sizes = {"B": B, "NH": NH, "T": T, "DQK": D, "DHV": D}
    return Case(
        op="mlstm",
        sizes=sizes,
        backend=backend or chosen_backend("mlstm", sizes),
        ours=turn(ours),
        judge=next((name, run) for name, run in judges if run and name != "attention"),
        peers=peers,
        flops=B * NH * T * (3 * CHUNK * (D + D) + 12 * D * D),
        bytes=B * NH * T * (2 * (3 * D + 2) + 2 * D) * 4,
    )


def nxai_parallel() -> Callable[..., Tensor]:
    from xlstm.blocks.mlstm.backends import (  # pyright: ignore[reportMissingImports]
        parallel_stabilized_simple,
    )

    return lambda q, k, v, i, f: parallel_stabilized_simple(
        q, k, v, i[..., None], f[..., None], eps=0
    )


def nxai_chunkwise() -> Callable[..., Tensor]:
    from mlstm_kernels.torch import get_mlstm_kernel  # pyright: ignore[reportMissingImports]

    kernel = get_mlstm_kernel("chunkwise--native_autograd")
    return lambda q, k, v, i, f: kernel(q, k, v, i, f, chunk_size=CHUNK, eps=0.0)


def slstm_case(B: int, T: int, NH: int, DH: int, backend: str | None) -> Case:
    x, dh = torch.randn(B, T, NH, 4, DH), torch.randn(B, T, NH, DH)
    recurrent_weight = torch.randn(NH, 4, DH, DH) * 0.5 * DH**-0.5
    bias = torch.zeros(NH, 4, DH)
    bias[:, 1] = 4  # the forget gate
    inputs = [x.requires_grad_(), recurrent_weight.requires_grad_(), bias.requires_grad_()]

    def scan(backend: str | None) -> Run:
        return differentiated(lambda: openxlstm.ops.slstm(*inputs, backend=backend)[0], inputs, dh)

    peers: dict[str, Run | None] = {
        "NX-AI cell": nxai_cell(inputs, dh) if installed("xlstm") else None,
        "NX-AI block": nxai_block(B, T, NH, DH) if installed("xlstm") else None,
        "nn.LSTM": lstm(B, T, NH * DH),
    }
    cell = peers["NX-AI cell"]
    sizes = {"B": B, "T": T, "NH": NH, "DH": DH}
    return Case(
        op="slstm",
        sizes=sizes,
        backend=backend or chosen_backend("slstm", sizes),
        ours=scan(backend),
        judge=("NX-AI cell", cell) if cell else ("openxlstm.reference", scan("reference")),
        peers=peers,
        flops=B * T * NH * 24 * DH * DH,
        bytes=B * T * NH * (2 * 4 * DH + 2 * DH) * 4,
    )


def nxai_cell(inputs: list[Tensor], dh: Tensor) -> Run:
    """NX-AI's cell with the weights of `inputs`, its answers in openxlstm's layout."""
    from xlstm.blocks.slstm.cell import (  # pyright: ignore[reportMissingImports]
        sLSTMCell,
        sLSTMCellConfig,
    )

    x, recurrent_weight, bias = (tensor.detach() for tensor in inputs)
    B, T, NH, _, DH = x.shape
    cell = sLSTMCell(
        sLSTMCellConfig(hidden_size=NH * DH, num_heads=NH, backend="vanilla", dtype="float32")
    )
    cell._recurrent_kernel_.data = recurrent_weight.reshape(NH, 4 * DH, DH).clone()
    cell._bias_.data = bias.transpose(0, 1).flatten().clone()
    flat = x.transpose(2, 3).reshape(B, T, 4 * NH * DH).requires_grad_()  # gate by gate
    leaves = [flat, cell._recurrent_kernel_, cell._bias_]
    turn = differentiated(lambda: cell(flat)[0], leaves, dh.transpose(1, 2).contiguous())

    def run() -> list[Tensor]:
        h, dx, dR, db = turn()
        return [
            h.transpose(1, 2),
            dx.view(B, T, 4, NH, DH).transpose(2, 3),
            dR.view(NH, 4, DH, DH),
            db.view(4, NH, DH).transpose(0, 1),
        ]

    return run


def nxai_block(B: int, T: int, NH: int, DH: int) -> Run:
    from xlstm import (  # pyright: ignore[reportMissingImports]
        FeedForwardConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMBlockStack,
        xLSTMBlockStackConfig,
    )

    layer = sLSTMLayerConfig(num_heads=NH, backend="vanilla", dtype="float32")
    config = xLSTMBlockStackConfig(
        slstm_block=sLSTMBlockConfig(
            slstm=layer, feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu")
        ),
        context_length=T,
        num_blocks=1,
        embedding_dim=NH * DH,
        add_post_blocks_norm=False,
    )
    return module_run(xLSTMBlockStack(config), B, T, NH * DH)


def lstm(B: int, T: int, width: int) -> Run:
    rnn = nn.LSTM(width, width, batch_first=True)
    return module_run(rnn, B, T, width)


def module_run(module: nn.Module, B: int, T: int, width: int) -> Run:
    """The turn of a module from (B, T, width) to the same, possibly with a state."""
    x, dh = torch.randn(B, T, width, requires_grad=True), torch.randn(B, T, width)

    def call() -> Tensor:
        y: Any = module(x)
        return y[0] if isinstance(y, tuple) else y

    return differentiated(call, [x, *module.parameters()], dh)


def disagreement(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative error among outputs and gradients; nan where something is not finite."""
    errors = [
        torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b)
        for a, b in zip(ours, theirs, strict=True)
    ]
    return float(torch.stack(errors).max())


@dataclass(frozen=True)
class Measured:
    """What came of one case; `timings` is empty where the answers differ."""

    case: Case
    error: float
    timings: dict[str, Timing]

    def to_dict(self, limits: Limits) -> dict[str, Any]:
        case, timings = self.case, self.timings
        ours = timings.get("openxlstm")
        return {
            "op": case.op,
            "shape": case.sizes,
            "backend": case.backend,
            "judge": case.judge[0],
            "error": self.error,
            "flops": case.flops,
            "limit_ms": case.limit(limits) * 1e3,
            "gflops": case.flops / ours.median / 1e9 if ours else None,
            "timings": {
                name: {**timing.to_dict(), "ratio": timing.median / ours.median}
                for name, timing in timings.items()
                if ours
            },
        }


def measure(case: Case, budget: float) -> Measured:
    """Checks one case and, if ours is right, times it."""
    error = disagreement(case.ours(), case.judge[1]())
    if not error <= TOLERANCE:
        return Measured(case, error, {})
    runs = {"openxlstm": case.ours, **{name: run for name, run in case.peers.items() if run}}
    return Measured(case, error, alternate(runs, budget))


def add_rows(table: Table, measured: Measured, limits: Limits) -> None:
    """The lines of one case: ours, the peers, the limit."""
    case, timings = measured.case, measured.timings
    if not timings:
        table.add_row(case.shape, "[red]not timed", f"[red]differs by {measured.error:.1e}")
        table.add_section()
        return
    ours, limit = timings["openxlstm"], case.limit(limits)
    gflops = f"{case.flops / ours.median / 1e9:.1f}"
    name, turns = f"[bold]openxlstm {case.backend}", str(len(ours.seconds))
    table.add_row(case.shape, name, f"[bold]{ours.in_ms()}", turns, "1", gflops)
    for name in case.peers:
        if name in timings:
            ratio, turns = timings[name].median / ours.median, str(len(timings[name].seconds))
            table.add_row("", name, timings[name].in_ms(), turns, f"{ratio:.1f}")
        else:
            table.add_row("", name, "[dim]not installed")
    table.add_row(
        "", "[dim]limit", f"[dim]{limit * 1e3:.2f}", "", f"[dim]{limit / ours.median:.2f}"
    )
    table.add_section()


def report(console: Console, op: str, cases: list[Measured], limits: Limits) -> None:
    """Prints the table of one op."""
    table = Table(title=f"{op}, float32, forward + backward")
    table.add_column("shape", no_wrap=True)
    table.add_column("who", no_wrap=True)
    for column in ("ms (lowest–highest)", "turns", "time / ours", "GFLOP/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for measured in cases:
        add_rows(table, measured, limits)
    console.print(table)
    errors = [f"{m.error:.0e} from {m.case.judge[0]}" for m in cases]
    console.print(f"relative error of outputs and gradients, a shape: {', '.join(errors)}")


def main(
    quick: bool = False,
    op: Literal["mlstm", "slstm", "both"] = "both",
    backend: str | None = None,
    budget: float = 30.0,
    threads: int = 2,
    json: Path | None = None,
) -> int:
    """Times the ops beside their peers, after checking that they agree.

    Args:
        quick: the first shape of each op, a short budget: shows that everything runs.
        op: which op.
        backend: openxlstm's backend by name, instead of the one it chooses.
        budget: seconds of timing a shape, shared equally; the slow ones take 3 turns at least.
        threads: threads of every contender.
        json: a file for the results.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    console = Console(width=max(Console().width, 110))
    where = environment()
    console.print(f"{where['processor']}, {threads} threads, torch {where['torch']}")

    limits = measure_limits()
    done: list[Measured] = []
    for name, shapes, make in (
        ("mlstm", MLSTM_SHAPES, mlstm_case),
        ("slstm", SLSTM_SHAPES, slstm_case),
    ):
        if op not in (name, "both"):
            continue
        cases: list[Measured] = []
        for shape in shapes[:1] if quick else shapes:
            cases.append(measure(make(*shape, backend), 3.0 if quick else budget))
            limits = limits.or_better(measure_limits())
        report(console, name, cases, limits)
        done += cases
    console.print(f"limits: {limits}")

    results = [measured.to_dict(limits) for measured in done]
    write_json(json, {"limits": vars(limits), "results": results})
    return 0 if all(measured.timings for measured in done) else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
