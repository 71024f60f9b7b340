"""What a checkpoint of another implementation turns out to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from openxlstm.config import ModelConfig, StackConfig
from openxlstm.interop.keymap import Row


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read a checkpoint's tensors."""

    config: StackConfig
    """The same model here; a ModelConfig unless it is a stack alone."""
    rows: list[Row]
    """Its key map."""
    may_lack: frozenset[str] = frozenset()
    """Tensors of ours that are 0, since this checkpoint's model has nothing in their place."""
    ignore: frozenset[str] = frozenset()
    """Tensors of theirs that hold nothing to be learned."""
    notes: list[str] = field(default_factory=list)
    """What is different here, for whoever converts."""

    @property
    def language_model(self) -> ModelConfig:
        """The configuration, of what is known to be a language model."""
        assert isinstance(self.config, ModelConfig)
        return self.config


def rows_of(tensors: Mapping[str, Tensor], name: str) -> int | None:
    """The first dimension of a tensor; None where it is not there, or a single number."""
    if name not in tensors or tensors[name].dim() == 0:
        return None
    return tensors[name].shape[0]
