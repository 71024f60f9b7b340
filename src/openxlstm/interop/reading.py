"""The plan to read a checkpoint of another library."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from openxlstm.config import ModelConfig, StackConfig
from openxlstm.interop.keymap import Row


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read a checkpoint's tensors."""

    config: StackConfig
    """The configuration of the same model in openxlstm; a StackConfig for a stack only."""
    rows: list[Row]
    """Its key map."""
    may_lack: frozenset[str] = frozenset()
    """Tensors of openxlstm without a counterpart in the checkpoint; they become 0."""
    ignore: frozenset[str] = frozenset()
    """Tensors of the checkpoint that are not parameters."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user about differences between the two models."""

    @property
    def language_model(self) -> ModelConfig:
        """The configuration of a checkpoint that is known to be a language model."""
        assert isinstance(self.config, ModelConfig)
        return self.config


def rows_of(tensors: Mapping[str, Tensor], name: str) -> int | None:
    """The first dimension of a tensor; None if it is missing or a scalar."""
    if name not in tensors or tensors[name].dim() == 0:
        return None
    return tensors[name].shape[0]
