"""The configuration of a model in transformers, stored in the same `config.json`."""

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedConfig

from openxlstm.config import BLOCK_CONFIGS, ModelConfig
from openxlstm.errors import UserError
from openxlstm.lm.config_file import (
    FORMAT,
    FORMAT_VERSION,
    IN_TRANSFORMERS,
    check_names,
    upgraded,
)
from openxlstm.strict import require


class OpenXLSTMConfig(PreTrainedConfig):
    """Configuration of an openxlstm language model.

    Args:
        model: the table "model" of `config.json`. Its options, and those of the block, may also be
            given one by one: `OpenXLSTMConfig(vocab_size=65, layers="s", slstm_ff_factor=2.0)`.
        use_cache: whether the model returns its state in evaluation mode.

    Raises:
        UserError: on an unknown option, an invalid value, or values that contradict the table.
    """

    model_type = "openxlstm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    format: str = FORMAT
    format_version: int | None = None
    model: dict[str, Any] | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    if TYPE_CHECKING:  # the options of ModelConfig as well

        def __init__(self, **options: Any) -> None: ...

    def __post_init__(self, **kwargs: Any) -> None:
        require(
            self.format == FORMAT, f"the configuration's format is {self.format!r}, not {FORMAT!r}"
        )
        blocks = (name for block in BLOCK_CONFIGS.values() for name in block.names())
        known = {*ModelConfig.names(), *blocks} - {"kind"}
        options = {name: kwargs.pop(name) for name in sorted(known & set(kwargs))}
        beside = {name: kwargs.pop(name) for name in IN_TRANSFORMERS if name in kwargs}
        super().__post_init__(**kwargs)
        if self.model is None:
            # A user wrote these options and may have misspelt one. Unknown options in a file come
            # from other versions of transformers and are accepted.
            unknown = [name for name in kwargs if name in self.__dict__]
            if unknown:
                raise UserError(
                    f"OpenXLSTMConfig has no option {unknown[0]!r}; it has: {sorted(known)}"
                )
            config = ModelConfig.from_options(**options)
        else:
            version = 1 if self.format_version is None else self.format_version
            config = ModelConfig.from_dict(upgraded(self.model, version))
            beside |= options
        check_names(config, beside)
        self.model, self.format_version = config.to_dict(), FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, with the names that libraries around transformers look for."""
        names = {name: getattr(self, name) for name in ("vocab_size", *IN_TRANSFORMERS)}
        return {**super().to_dict(), **names}

    @property
    def model_config(self) -> ModelConfig:
        """The configuration of the same `openxlstm.LanguageModel`."""
        return ModelConfig.from_dict(self._table())

    def _table(self) -> dict[str, Any]:
        assert self.model is not None
        return self.model

    # The names that transformers uses.

    @property
    def vocab_size(self) -> int:
        return self._table()["vocab_size"]

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        self._table()["vocab_size"] = size

    @property
    def tie_word_embeddings(self) -> bool:
        return self._table()["tie_weights"]

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, tied: bool) -> None:
        self._table()["tie_weights"] = tied

    @property
    def hidden_size(self) -> int:
        return self._table()["embedding_dim"]

    @property
    def num_hidden_layers(self) -> int:
        return len(self._table()["layers"])

    @property
    def num_attention_heads(self) -> int:
        return self._table()["num_heads"]
