"""The machine's limits: arithmetic, and that what is measured is a product and a copy."""

from typing import Any

import pytest
import torch

from openxlstm.bench import limits as module
from openxlstm.bench.limits import Limits, Work, measure_limits, onednn_product
from openxlstm.bench.timing import Timing


def test_time_at_the_limit_by_hand() -> None:
    limits = Limits({"A": 50.0, "B": 100.0}, 10.0)
    assert limits.gflops == 100
    assert limits.seconds(Work(2 * 10**9, 0)) == pytest.approx(0.02)
    assert limits.seconds(Work(0, 10**9)) == pytest.approx(0.1)
    assert limits.seconds(Work(2 * 10**9, 10**9)) == pytest.approx(0.1), "one hides the other"
    assert limits.seconds(Work(2 * 10**10, 10**9)) == pytest.approx(0.2)
    assert Work(3, 5).times(7) == Work(21, 35)


def test_the_better_of_two_measurements() -> None:
    one, other = Limits({"A": 50.0, "B": 70.0}, 10.0), Limits({"A": 60.0, "C": 5.0}, 9.0)
    better = Limits({"A": 60.0, "B": 70.0, "C": 5.0}, 10.0)
    assert one.or_better(other) == other.or_better(one) == better
    nothing = Limits({}, 0.0)
    assert nothing.gflops == 0
    assert nothing.or_better(one) == one


def test_in_words_and_for_a_program() -> None:
    limits = Limits({"MKL": 231.4, "oneDNN": 501.6}, 85.24)
    assert str(limits) == "1024³ float32 product MKL 231, oneDNN 502 GFLOP/s, copy 85.2 GB/s"
    assert limits.to_dict() == {
        "gflops": 501.6,
        "products_gflops": {"MKL": 231.4, "oneDNN": 501.6},
        "copy_gbytes": 85.24,
    }


def test_the_best_turn_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 100)
    monkeypatch.setattr(module, "COPIED", 1000)

    def repetitions(contenders: dict[str, Any], *_: object, **__: object) -> dict[str, Timing]:
        return {name: Timing((9.0, 2e-6 if name == "copy" else 4e-6, 7.0)) for name in contenders}

    monkeypatch.setattr(module, "alternate", repetitions)
    limits = measure_limits()
    assert set(limits.products.values()) == {2 * 100**3 / 4e-6 / 1e9}
    assert limits.gbytes == pytest.approx(2 * 4000 / 2e-6 / 1e9)


def test_it_measures_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 64)
    monkeypatch.setattr(module, "COPIED", 2**16)
    limits = measure_limits(budget=0.01)
    assert 0.01 < limits.gflops < 1e5
    assert 0.01 < limits.gbytes < 1e5
    assert ("oneDNN" in limits.products) == (onednn_product() is not None)
    assert len(limits.products) == 1 + ("oneDNN" in limits.products)


def test_onednn_computes_a_product() -> None:
    product = onednn_product()
    if product is None:
        pytest.skip("a build of torch without it")
    x, w = torch.randn(32, 48), torch.randn(16, 48)
    torch.testing.assert_close(product(x, w, None, "none", [], ""), x @ w.T)


def test_without_onednn_there_is_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert onednn_product() is None
    monkeypatch.setattr(module, "SIDE", 16)
    monkeypatch.setattr(module, "COPIED", 16)
    assert len(measure_limits(0.001).products) == 1
