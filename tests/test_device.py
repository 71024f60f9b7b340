"""Devices, threads and seeds."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from openxlstm.device import (
    free_memory_bytes,
    get_device,
    memory_bytes,
    seed_everything,
    set_threads,
)
from openxlstm.errors import UserError


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def random_states() -> Iterator[None]:
    """Leaves the generators of numpy and Python as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)


def test_memory_is_that_of_a_machine() -> None:
    size = memory_bytes()
    assert size is None or 2**28 < size < 2**50


def test_free_memory_is_a_part_of_it() -> None:
    free, size = free_memory_bytes(), memory_bytes()
    assert free is None or size is None or 0 <= free <= size


def test_the_cpu_is_home() -> None:
    assert get_device() == get_device("") == get_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "cpu:x", "cuda:99", "xla", "mps:7"])
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(UserError, match=f"the device '{name}' cannot be used here: .") as caught:
        get_device(name)
    assert "\n" not in str(caught.value)


def test_set_threads(threads: None) -> None:
    set_threads(1)
    assert torch.get_num_threads() == 1
    set_threads(None)
    assert torch.get_num_threads() == 1
    for count in (0, -1):
        with pytest.raises(UserError, match=f"threads must be at least 1, not {count}"):
            set_threads(count)


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002


def test_a_seed_repeats_everything(random_states: None) -> None:
    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    seed_everything(8)
    again = draw()
    assert all(a != b for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(seed: int, random_states: None) -> None:
    with pytest.raises(UserError, match="seed must be between"):
        seed_everything(seed)
    seed_everything(2**32 - 1)
