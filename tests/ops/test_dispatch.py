"""Which backend runs, what is said when none does, and that none stands in for another unasked."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from openxlstm.ops import TABLE
from openxlstm.ops.dispatch import (
    Backend,
    BackendError,
    CallContext,
    Request,
    Sizes,
    by_sizes,
    never,
    pick,
)


def yes(name: str, *, slow: bool = False) -> Backend:
    """A backend that takes everything; its function tells whether it is a slow one."""
    return Backend(name, never, math.sqrt if slow else math.floor, slow=slow)


def no(name: str, reason: str = "there is no abacus here") -> Backend:
    return Backend(name, lambda request: reason, math.ceil)


def picked(*backends: Backend, name: str | None = None, op: str = "op", T: int = 3) -> Any:
    return pick(op, {op: backends}, torch.zeros(1), {"T": T}, name)


def test_first_that_does_not_refuse_runs():
    assert picked(no("a"), yes("b"), Backend("c", never, math.sqrt)) is math.floor


def test_refusal_looks_at_sizes():
    @by_sizes
    def short(sizes: Sizes) -> str | None:
        return "too short" if sizes["T"] < 4 else None

    long = Backend("long", short, math.ceil)
    assert picked(long, yes("any")) is math.floor
    assert picked(long, yes("any"), T=4) is math.ceil
    assert short(Request("cpu", torch.float32, None, CallContext.PLAIN)) is None


def test_a_size_that_the_op_did_not_give_raises():
    """It is no reason to take another backend."""
    with pytest.raises(KeyError, match="width"):
        picked(Backend("wide", by_sizes(lambda sizes: str(sizes["width"])), math.ceil), yes("any"))


def test_a_name_wins_over_the_order():
    assert picked(yes("a"), Backend("b", never, math.ceil), name="b") is math.ceil


def test_named_backend_that_refuses_raises_its_reason():
    """It never falls back, though another would run."""
    with pytest.raises(BackendError, match="'a' cannot run op here: there is no abacus here"):
        picked(no("a"), yes("b"), name="a")


def test_all_refusing_raises_every_reason():
    backends = no("a", "needs an abacus"), no("b", "needs a slide rule")
    with pytest.raises(BackendError, match=r"op.*a: needs an abacus; b: needs a slide rule"):
        picked(*backends)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="op has no backend 'c'; it has: a, b"):
        picked(no("a"), yes("b"), name="c")


def test_backends_run_without_autocast():
    def mm() -> torch.Tensor:
        return torch.ones(2, 2) @ torch.ones(2, 2)

    with torch.autocast("cpu"):
        assert picked(Backend("a", never, mm))().dtype == torch.float32


class TestSlowFallback:
    def test_is_announced_once_for_each_op(self):
        for op in ("announced", "another"):
            backends = no("fast"), yes("crawl", slow=True)
            with pytest.warns(UserWarning, match=rf"{op}.*slow backend 'crawl'.*openxlstm info"):
                picked(*backends, op=op)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                picked(*backends, op=op)

    def test_is_not_announced_where_it_was_asked_for(self):
        assert picked(yes("crawl", slow=True), name="crawl", op="asked") is math.sqrt


def every_backend(check: Callable[[Backend], bool]) -> list[str]:
    """Those that fail."""
    return [f"{op} {b.name}" for op, backends in TABLE.items() for b in backends if not check(b)]


def test_the_table():
    """Names differ, slow backends come last, functions are ours, something runs everywhere."""
    rooms = "ops", "reference"
    assert every_backend(lambda b: b.run.__module__.split(".")[1] in rooms) == []
    for op, backends in TABLE.items():
        assert len({b.name for b in backends}) == len(backends), op
        slow = [b.slow for b in backends]
        assert slow == sorted(slow), op
        for device in ("cpu", "cuda", "mps", "xpu"):
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                for context in CallContext:
                    request = Request(device, dtype, None, context)
                    assert any(b.refuses(request) is None for b in backends), op
