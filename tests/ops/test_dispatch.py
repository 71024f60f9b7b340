"""Which backend runs, what is said when none does, and that none stands in for another unasked."""

import math
import warnings

import pytest
import torch
from tolerances import assert_close

from openxlstm.ops import TABLE, causal_conv, mlstm, slstm
from openxlstm.ops.dispatch import Backend, BackendError, Request, choose, never

REQUEST = Request("cpu", torch.float32, (("T", 3),))


def yes(name: str, *, slow: bool = False) -> Backend:
    """A backend that takes everything; its function tells whether it is a slow one."""
    return Backend(name, never, math.sqrt if slow else math.floor, slow=slow)


def no(name: str, reason: str = "there is no abacus here") -> Backend:
    return Backend(name, lambda request: reason, math.ceil)


def test_first_that_does_not_refuse_runs():
    backends = (no("a"), yes("b"), Backend("c", never, math.sqrt))
    assert choose("op", backends, REQUEST, None) is math.floor


def test_refusal_looks_at_the_request():
    seen: list[Request] = []

    def refuses(request: Request) -> str | None:
        seen.append(request)
        return "too short" if dict(request.sizes)["T"] < 4 else None

    backends = (Backend("long", refuses, math.ceil), yes("any"))
    assert choose("op", backends, REQUEST, None) is math.floor
    longer = Request("cpu", torch.float32, (("T", 4),), wants_grad=True)
    assert choose("op", backends, longer, None) is math.ceil
    assert seen == [REQUEST, longer]


def test_a_name_wins_over_the_order():
    backends = (yes("a"), Backend("b", never, math.ceil))
    assert choose("op", backends, REQUEST, "b") is math.ceil


def test_named_backend_that_refuses_raises_its_reason():
    """It never falls back, though another would run."""
    with pytest.raises(BackendError, match="'a' cannot run op here: there is no abacus here"):
        choose("op", (no("a"), yes("b")), REQUEST, "a")


def test_all_refusing_raises_every_reason():
    backends = (no("a", "needs an abacus"), no("b", "needs a slide rule"))
    with pytest.raises(BackendError, match=r"op.*a: needs an abacus; b: needs a slide rule"):
        choose("op", backends, REQUEST, None)


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="op has no backend 'c'; it has: a, b"):
        choose("op", (no("a"), yes("b")), REQUEST, "c")


class TestSlowFallback:
    def test_is_announced_once(self):
        backends = (no("fast"), yes("crawl", slow=True))
        with pytest.warns(UserWarning, match=r"announced.*slow backend 'crawl'.*openxlstm info"):
            choose("announced", backends, REQUEST, None)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            choose("announced", backends, REQUEST, None)

    def test_is_announced_for_each_op(self):
        for op in ("one op", "another op"):
            with pytest.warns(UserWarning, match=op):
                choose(op, (yes("crawl", slow=True),), REQUEST, None)

    def test_is_not_announced_to_who_asked_for_it(self):
        chosen = choose("asked", (yes("crawl", slow=True),), REQUEST, "crawl")
        assert chosen is math.sqrt


class TestTable:
    @pytest.mark.parametrize(
        ("op", "backend"),
        [(op, backend) for op, backends in TABLE.items() for backend in backends],
        ids=lambda value: getattr(value, "name", value),
    )
    def test_every_entry_runs(self, op: str, backend: Backend):
        assert backend.run.__module__.split(".")[1] in ("ops", "reference")
        if backend.refuses(REQUEST) is None:
            assert callable(choose(op, (backend,), REQUEST, backend.name))

    @pytest.mark.parametrize("op", TABLE)
    def test_names_differ_and_something_runs_everywhere(self, op: str):
        names = [backend.name for backend in TABLE[op]]
        assert len(set(names)) == len(names)
        for device in ("cpu", "cuda", "mps", "xpu"):
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                for wants_grad in (True, False):
                    request = Request(device, dtype, (), wants_grad)
                    assert any(backend.refuses(request) is None for backend in TABLE[op])

    @pytest.mark.parametrize("op", TABLE)
    def test_the_slow_ones_come_last(self, op: str):
        slow = [backend.slow for backend in TABLE[op]]
        assert slow == sorted(slow)


class TestReference:
    """`backend="reference"` gives the answers of `backend="torch"`."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_mlstm(self, dtype: torch.dtype):
        q, k, v = torch.randn(3, 2, 2, 80, 4).to(dtype)
        log_i, log_f = torch.randn(2, 2, 2, 80).to(dtype)
        reset = torch.rand(2, 80) < 0.1
        results = [
            mlstm(q, k, v, log_i, -log_f.abs(), reset=reset, eps=1e-6, chunk_size=size, backend=b)
            for b, size in (("torch", None), ("reference", None), ("reference", 7))
        ]
        for h, state in results[1:]:
            assert h.dtype == dtype
            assert_close(h, results[0][0], "h")
            for part, expected in zip(state, results[0][1], strict=True):
                assert part.dtype == expected.dtype
                assert_close(part, expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("forget_gate", ["sigmoid", "exp"])
    def test_slstm(self, dtype: torch.dtype, forget_gate: str):
        x, weight = torch.randn(2, 20, 2, 4, 3).to(dtype), torch.randn(2, 4, 3, 3).to(dtype) / 2
        bias, reset = torch.randn(2, 4, 3).to(dtype), torch.rand(2, 20) < 0.2
        (h, state), (h_expected, state_expected) = (
            slstm(x, weight, bias, reset=reset, forget_gate=forget_gate, backend=backend)
            for backend in ("reference", "torch")
        )
        assert h.dtype == dtype
        assert_close(h, h_expected, "h")
        for part, expected in zip(state, state_expected, strict=True):
            assert part.dtype == expected.dtype
            assert_close(part, expected)

    def test_causal_conv_needs_none(self):
        """What it is compared with is torch's own conv1d."""
        with pytest.raises(ValueError, match="no backend 'reference'"):
            causal_conv(torch.zeros(1, 2, 3), torch.zeros(3, 4), backend="reference")
