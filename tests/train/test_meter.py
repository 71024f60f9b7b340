"""Speed of late, and memory."""

import subprocess
import sys

import pytest
import torch

from openxlstm.train.meter import Meter, peak_memory


def test_nothing_to_measure_yet() -> None:
    meter = Meter()
    assert meter.tokens_per_second is None
    meter.add(100, 5.0)
    assert meter.tokens_per_second is None
    meter.add(100, 5.0)
    assert meter.tokens_per_second is None, "no time has passed"
    meter.add(150, 5.5)
    assert meter.tokens_per_second == 100.0


def test_only_the_recent_stretch_counts() -> None:
    meter = Meter(stretch=2.0)
    for second in range(10):
        meter.add(10 * second, float(second))
    assert meter.tokens_per_second == 10.0
    for second in range(10, 13):
        meter.add(90, float(second))
    assert meter.tokens_per_second == 0.0, "a stall shows when it is as long as the stretch"
    meter.add(190, 20.0)
    assert meter.tokens_per_second == 100 / 8, "a step longer than the stretch is one"


def test_a_pause_is_left_out() -> None:
    meter = Meter()
    meter.add(0, 0.0)
    meter.add(10, 1.0)
    meter.pause()
    assert meter.tokens_per_second is None
    meter.add(20, 50.0)
    meter.add(30, 51.0)
    assert meter.tokens_per_second == 10.0


def test_a_new_stretch_begins_where_the_run_is() -> None:
    meter = Meter()
    meter.restart()
    for tokens, seconds in ((0, 0.0), (10, 1.0)):
        meter.add(tokens, seconds)
    meter.restart()
    assert meter.tokens_per_second is None
    meter.add(40, 2.0)
    assert meter.tokens_per_second == 30.0


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say")
def test_peak_memory_is_of_this_process() -> None:
    before = peak_memory()
    torch.ones(20_000_000).sum()
    assert 50e6 < before <= peak_memory() < 1e12
    assert peak_memory() >= 80e6


@pytest.mark.skipif(sys.platform != "linux", reason="inherited there alone")
def test_peak_memory_is_not_of_the_parent() -> None:
    code = "from openxlstm.train.meter import peak_memory; print(peak_memory())"
    parent = torch.ones(500_000_000, dtype=torch.uint8)
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert int(said) < len(parent)
