"""Fixtures for the whole suite."""

import os
import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from jobs import Jobs, server

# A shell has what it starts in the background ignore Ctrl-C, and so would what tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ["OMP_NUM_THREADS"] = "1"  # for processes that tests start: pytest-xdist uses the cores

# Examples are drawn alike in every run, and no example is too slow on a busy machine.
settings.register_profile("openxlstm", deadline=None, derandomize=True, max_examples=15)
settings.load_profile("openxlstm")


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """The same random numbers in every test, one thread, which is fastest where models are tiny,
    and memory that is NaN until it is written."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """Runs commands in processes of their own."""
    with server(tmp_path_factory.mktemp("jobs")) as jobs:
        yield jobs


# ---- order ------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    about = "number that the order of the tests is drawn with; by default another one each time"
    parser.addoption("--order", type=int, default=None, help=about)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.order is None:  # a process of pytest-xdist is told that of the first one
        told = getattr(config, "workerinput", {"order": random.SystemRandom().randrange(10**6)})
        config.option.order = told["order"]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["order"] = node.config.option.order


def pytest_report_header(config: pytest.Config) -> str:
    return f"order of the tests: --order {config.option.order}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Shuffles files, and the tests of each: none may need what another one left."""
    draw = random.Random(config.option.order)
    files = {item.path: draw.random() for item in items}
    keys = {item: (files[item.path], draw.random()) for item in items}
    items.sort(key=keys.__getitem__)
