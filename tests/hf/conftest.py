"""What the tests with transformers share: no network, no progress bars, small models."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from openxlstm.config import ModelConfig  # noqa: E402
from openxlstm.hf import OpenXLSTMConfig, OpenXLSTMForCausalLM  # noqa: E402
from openxlstm.lm.model import LanguageModel  # noqa: E402

KINDS: dict[str, dict[str, Any]] = {
    "paper": {"layers": "ms", "num_positions": 6},
    "tied": {"layers": "sm", "tie_weights": True, "bias": True},
    "large": {"layers": "mm", "block": "large"},
}
"""Models of all sorts."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    yield
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.enable_progress_bar()


def random_model(kind: str = "paper", **options: Any) -> OpenXLSTMForCausalLM:
    """A small model whose every parameter is random, in evaluation mode."""
    defaults = {"vocab_size": 11, "embedding_dim": 16, "num_heads": 2}
    config = ModelConfig.from_options(**{**defaults, **KINDS[kind], **options})
    torch.manual_seed(0)
    model = OpenXLSTMForCausalLM(OpenXLSTMConfig(model=config.to_dict()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., OpenXLSTMForCausalLM]:
    return random_model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> OpenXLSTMForCausalLM:
    return random_model(request.param)


@pytest.fixture(params=KINDS)
def language(request: pytest.FixtureRequest) -> LanguageModel:
    return random_model(request.param).language_model
