"""Fixtures for the whole suite."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

# Examples are drawn alike in every run, and no example is too slow on a busy machine.
settings.register_profile("openxlstm", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("openxlstm")


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """The same random numbers in every test, and memory that is NaN until it is written."""
    torch.manual_seed(0)
    torch.utils.deterministic.fill_uninitialized_memory = True  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
