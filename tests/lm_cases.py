"""What the tests of language models share."""

from typing import Any

import torch

from openxlstm.config import ModelConfig
from openxlstm.lm.model import LanguageModel


def make_model(**options: Any) -> LanguageModel:
    """A small model in float64 whose every parameter is random, in evaluation mode."""
    defaults: dict[str, Any] = {
        "vocab_size": 11, "embedding_dim": 16, "layers": "ms", "num_heads": 2, "num_positions": 6,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig.from_options(**{**defaults, **options})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()
