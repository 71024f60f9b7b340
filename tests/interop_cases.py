"""What the tests of other formats share: models whose every weight counts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openxlstm.config import LargeBlockConfig, ModelConfig, StackConfig
from openxlstm.lm.model import LanguageModel
from openxlstm.nn.stack import Stack

PAPER: dict[str, Any] = {
    "vocab_size": 11, "embedding_dim": 16, "layers": "ms", "num_heads": 2, "mlstm_eps": 1e-6,
}  # fmt: skip
LARGE: dict[str, Any] = {
    "vocab_size": 11, "embedding_dim": 16, "layers": "mm", "num_heads": 2, "block": "large",
    "eps": 1e-6,
}  # fmt: skip


def random_model(config: StackConfig) -> LanguageModel | Stack:
    """A model, or a stack alone, whose every weight is random and not 0."""
    torch.manual_seed(0)
    model = LanguageModel(config) if isinstance(config, ModelConfig) else Stack(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, and every number the same to the bit."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Changes the tensors of a folder's one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def widths(config: StackConfig) -> tuple[int, int, int]:
    """Of keys, values and feed-forwards."""
    assert isinstance(config.block, LargeBlockConfig)
    D = config.embedding_dim
    return *config.block.mlstm_dims(D), config.block.ff_dim(D)
