"""The configuration of a model in transformers, stored in the same `config.json`."""

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedConfig

from openxlstm.config import ModelConfig
from openxlstm.errors import UserError
from openxlstm.lm.folder import FORMAT
from openxlstm.strict import require


class OpenXLSTMConfig(PreTrainedConfig):
    """Configuration of an openxlstm language model.

    Args:
        model: the fields of `openxlstm.ModelConfig`, as in the table "model" of `config.json`.
            They may also be given one by one: `OpenXLSTMConfig(vocab_size=65, layers="ms")`.
        use_cache: whether the model returns its state in evaluation mode.

    Raises:
        UserError: on an unknown field or an invalid value.
    """

    model_type = "openxlstm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    format: str = FORMAT
    model: dict[str, Any] | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    if TYPE_CHECKING:  # the fields of ModelConfig as well

        def __init__(self, **options: Any) -> None: ...

    def __post_init__(self, **kwargs: Any) -> None:
        require(
            self.format == FORMAT, f"the configuration's format is {self.format!r}, not {FORMAT!r}"
        )
        known = ModelConfig.names()
        options = {name: kwargs.pop(name) for name in known if name in kwargs}
        if self.model is None:
            # A user wrote these options and may have misspelt one. Unknown options in a file come
            # from other versions of transformers and are accepted.
            super().__post_init__(**kwargs)
            unknown = [name for name in kwargs if name in self.__dict__]
            if unknown:
                raise UserError(f"OpenXLSTMConfig has no option {unknown[0]!r}; it has: {known}")
        else:
            super().__post_init__(**kwargs)
        self.model = ModelConfig.from_dict({**(self.model or {}), **options}).to_dict()

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
