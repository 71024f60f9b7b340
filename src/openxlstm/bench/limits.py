"""The machine's measured limits, and the least time that some work takes at these."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from openxlstm.bench.timing import alternate

SIDE = 1024
"""Side of the square matrices whose product is timed."""
COPIED = 2**26
"""float32 numbers per copy: 256 MiB, more than caches hold."""


@dataclass(frozen=True)
class Work:
    """The work of a task, independent of the implementation."""

    flops: int
    """Floating-point operations, a multiply-add counting as two."""
    bytes: int
    """Memory traffic, read plus written."""

    def times(self, count: int) -> "Work":
        return Work(self.flops * count, self.bytes * count)


@dataclass(frozen=True)
class Limits:
    """The machine's limits at the benchmark's number of threads."""

    products: Mapping[str, float]
    """GFLOP/s of a float32 product of two 1024 × 1024 matrices, by library."""
    gbytes: float
    """GB/s, read plus written, of a copy of 256 MiB."""

    @property
    def gflops(self) -> float:
        """GFLOP/s of the fastest library; 0 before the first measurement."""
        return max(self.products.values(), default=0.0)

    def seconds(self, work: Work) -> float:
        """Least time of some work: the longer of its arithmetic and its memory traffic."""
        return max(work.flops / self.gflops, work.bytes / self.gbytes) / 1e9

    def or_better(self, other: "Limits") -> "Limits":
        """The higher of both, limit by limit: the lower one was disturbed by other programs."""
        products = dict(self.products)
        for name, gflops in other.products.items():
            products[name] = max(gflops, products.get(name, 0.0))
        return Limits(products, max(self.gbytes, other.gbytes))

    def __str__(self) -> str:
        products = ", ".join(f"{name} {gflops:.0f}" for name, gflops in self.products.items())
        return f"1024³ float32 product {products} GFLOP/s, copy {self.gbytes:.1f} GB/s"

    def to_dict(self) -> dict[str, Any]:
        return {
            "gflops": self.gflops,
            "products_gflops": dict(self.products),
            "copy_gbytes": self.gbytes,
        }


def measure_limits(budget: float = 1.0) -> Limits:
    """Measures the limits: the best of many repetitions, not the median."""
    a, b, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    source, target = torch.ones(COPIED), torch.zeros(COPIED)
    products: dict[str, Callable[[], object]] = {"MKL": lambda: torch.mm(a, b, out=out)}
    if not torch.backends.mkl.is_available():
        products = {"BLAS": products["MKL"]}
    # On AMD processors with AVX-512, MKL reaches half of what oneDNN does.
    onednn = onednn_product()
    if onednn is not None:
        products["oneDNN"] = lambda: onednn(a, b, None, "none", [], "")
    with torch.inference_mode():
        copy = {"copy": lambda: target.copy_(source)}
        timings = alternate({**products, **copy}, budget, fewest=8)
    return Limits(
        {name: 2 * SIDE**3 / timings[name].lowest / 1e9 for name in products},
        2 * source.nbytes / timings["copy"].lowest / 1e9,
    )


def onednn_product() -> Callable[..., Any] | None:
    """torch's function for oneDNN's x wᵀ in float32; None in a build without oneDNN."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)
