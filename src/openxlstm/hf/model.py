"""openxlstm's language models as models of transformers.

Their weights have the names of `openxlstm.LanguageModel`, so that both open the same folders.

B batch · T columns · D embedding_dim · V vocab_size
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from openxlstm.hf.cache import OpenXLSTMCache
from openxlstm.hf.config import OpenXLSTMConfig
from openxlstm.hf.padding import real_tokens, restarts, run_real
from openxlstm.lm.model import LanguageModel
from openxlstm.nn.init import small_init_
from openxlstm.nn.large_block import soft_cap
from openxlstm.nn.stack import Stack
from openxlstm.states import ModelState


class Inputs(NamedTuple):
    """The checked inputs of a call."""

    x: Tensor
    """Embeddings of the tokens, without positions (B, T, D)."""
    real: Tensor | None
    """True for tokens that are not padding (B, T); None for all."""
    reset: Tensor | None
    """True where the state is emptied (B, T); None for nowhere."""
    state: ModelState | None


class OpenXLSTMPreTrainedModel(PreTrainedModel):
    """Base of both models: the parts of a `LanguageModel`, under the same names."""

    config_class = OpenXLSTMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _no_split_modules = ["Block", "LargeBlock"]  # noqa: RUF012
    _is_stateful = True  # assisted generation says that it cannot take tokens back

    config: OpenXLSTMConfig
    token_embedding: nn.Embedding
    stack: Stack
    head: nn.Linear

    def __init__(self, config: OpenXLSTMConfig) -> None:
        super().__init__(config)
        language = LanguageModel(config.model_config)
        if not self.can_generate():
            del language.head
        # The two share one table of children: a part that is replaced in one is replaced in both.
        self._modules = language._modules
        # Held in a tuple so that it is not registered; its children already are.
        self._language = (language,)
        for parameter in self.parameters():
            if parameter.device.type != "meta":
                parameter._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes weights that a folder lacked, or of new tokens, as in a new model."""
        if isinstance(module, nn.Embedding) or module is getattr(self, "head", None):
            small_init_(module.weight, self.config.hidden_size)  # pyright: ignore[reportArgumentType]
            return
        place = next((name for name, part in self.named_modules() if part is module), None)
        if place is None:
            small_init_(module.weight, self.config.hidden_size)  # pyright: ignore[reportArgumentType]
            return
        with torch.device("cpu"):
            fresh = LanguageModel(self.config.model_config).get_submodule(place)
        for name, parameter in module.named_parameters(recurse=False):
            if not getattr(parameter, "_is_hf_initialized", False):
                parameter.copy_(fresh.get_parameter(name))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.token_embedding = value

    def _inputs(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: OpenXLSTMCache | None,
    ) -> Inputs:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        wanted, dims = ("input_ids", 2) if inputs_embeds is None else ("inputs_embeds", 3)
        if given.dim() != dims or 0 in given.shape:
            shape = "(B, T)" if dims == 2 else "(B, T, D)"
            raise ValueError(f"{wanted} must be {shape} with T ≥ 1, not {tuple(given.shape)}")
        B, T = given.shape[:2]
        seen = 0 if cache is None else cache.get_seq_length()
        real = real_tokens(attention_mask, B, T, seen)
        if input_ids is not None:
            # The padding token need not be in the vocabulary.
            known = input_ids if real is None else input_ids.masked_fill(~real, 0)
            x = self.token_embedding(known)
        else:
            assert inputs_embeds is not None
            x = inputs_embeds if real is None else inputs_embeds.masked_fill(~real[..., None], 0.0)
        return Inputs(x, real, restarts(position_ids, real, B, T), self._state(cache, B))

    def _state(self, cache: OpenXLSTMCache | None, B: int) -> ModelState | None:
        """The state in a cache. Raises ValueError for another type or batch size of it."""
        if cache is None:
            return None
        if not isinstance(cache, OpenXLSTMCache):
            raise ValueError(
                "past_key_values must be an openxlstm.hf.OpenXLSTMCache, as a previous call "
                f"returned it, not of type {type(cache).__name__}"
            )
        state = cache.state
        if state is not None and cache.batch_size != B:
            raise ValueError(
                f"past_key_values is of {cache.batch_size} sequences and the input of {B}; pick "
                "with batch_select_indices, or repeat with batch_repeat_interleave"
            )
        return state

    def _read(
        self, inputs: Inputs, output_hidden_states: bool | None
    ) -> tuple[Tensor, ModelState, tuple[Tensor, ...] | None]:
        """Runs the stack: its output (B, T, D), the state, and the hidden states between blocks."""
        language: LanguageModel = self._language[0]
        stack = language.stack
        stack.recompute_blocks = self.gradient_checkpointing and self.training

        def run(
            x: Tensor, state: ModelState | None, reset: Tensor | None
        ) -> tuple[Tensor, ModelState]:
            before, start = (None, None) if state is None else state
            x, position = language.place(x, start, reset)
            with outputs_of(stack.blocks, output_hidden_states) as between:
                y, after = stack(x, before, reset)
            if output_hidden_states:
                y = torch.cat([x, *between[:-1], y], dim=-1)  # `run_real` moves them all
            return y, ModelState(after, position)

        y, state = run_real(run, inputs.x, inputs.state, inputs.reset, inputs.real)
        if not output_hidden_states:
            return y, state, None
        hidden = y.split(self.config.hidden_size, dim=-1)
        return hidden[-1], state, hidden

    def _wanted(self, option: str, value: bool | None) -> bool:
        """An option, from the argument of a call or else from the configuration."""
        return bool(getattr(self.config, option) if value is None else value)

    def _new_cache(
        self, cache: OpenXLSTMCache | None, state: ModelState, T: int, use_cache: bool | None
    ) -> OpenXLSTMCache | None:
        """The cache that a call returns, with the final state; None if no cache is requested.

        In training, a cache is returned only with use_cache=True.
        """
        if (use_cache is None and self.training) or not self._wanted("use_cache", use_cache):
            return None
        cache = OpenXLSTMCache() if cache is None else cache
        cache.replace(state, cache.get_seq_length() + T)
        return cache


class OpenXLSTMModel(OpenXLSTMPreTrainedModel):
    """Embedding → blocks → norm: hidden states, without the head."""

    _keys_to_ignore_on_load_unexpected = [r"^head\.weight$"]  # noqa: RUF012

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: OpenXLSTMCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Like `OpenXLSTMForCausalLM.forward`, with `last_hidden_state` (B, T, D) for logits."""
        inputs = self._inputs(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        hidden_wanted = self._wanted("output_hidden_states", output_hidden_states)
        y, state, hidden = self._read(inputs, hidden_wanted)
        output = BaseModelOutputWithPast(
            last_hidden_state=y,  # pyright: ignore[reportArgumentType]
            past_key_values=self._new_cache(past_key_values, state, y.shape[1], use_cache),
            hidden_states=hidden,  # pyright: ignore[reportArgumentType]
        )
        return output if self._wanted("return_dict", return_dict) else output.to_tuple()


class OpenXLSTMForCausalLM(OpenXLSTMPreTrainedModel, GenerationMixin):
    """A language model of openxlstm, for `generate`, `Trainer` and `pipeline`."""

    _tied_weights_keys = {"head.weight": "token_embedding.weight"}  # noqa: RUF012
    if TYPE_CHECKING:  # with its own type, no model of transformers could call it
        generate: Any

    @property
    def language_model(self) -> LanguageModel:
        """The same model as an `openxlstm.LanguageModel`, which shares the weights."""
        language = self._language[0]
        language.training = self.training
        if language.config.vocab_size != self.config.vocab_size:
            language.config = self.config.model_config
        return language

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: OpenXLSTMCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Reads T tokens of B sequences.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), or (B, all columns so far); 0 at padding, which may be before or
                after a sequence and has no effect. Padding ids need not be in the vocabulary.
            position_ids: (B, T); the state is reset where they restart at 0 (packed documents).
            past_key_values: the cache of the previous call; it holds the new state afterwards.
            inputs_embeds: (B, T, D), instead of ids, without position embeddings.
            labels: (B, T), -100 where there is none; they are shifted here. Padding and the first
                token after it do not count.
            use_cache: whether to return the state; by default, only outside training.
            logits_to_keep: number, or indices, of the last columns with logits; 0 for all.
            kwargs: options of the loss, such as num_items_in_batch.

        Raises:
            ValueError: on shapes that do not fit together, or a mask with holes.
        """
        as_output = self._wanted("return_dict", return_dict)
        hidden_wanted = self._wanted("output_hidden_states", output_hidden_states)
        if labels is None and not hidden_wanted and use_cache and inputs_embeds is None:
            logits = self._step(input_ids, attention_mask, past_key_values)
            if logits is not None:
                output = CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)  # pyright: ignore[reportArgumentType]
                return output if as_output else output.to_tuple()
        inputs = self._inputs(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        y, state, hidden = self._read(inputs, hidden_wanted)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = soft_cap(self.head(y[:, keep]), self._language[0].logit_soft_cap)
        loss = None
        if labels is not None:
            labels = labels if inputs.real is None else counted(labels, inputs.real)
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,  # pyright: ignore[reportArgumentType]
            logits=logits,  # pyright: ignore[reportArgumentType]
            past_key_values=self._new_cache(past_key_values, state, y.shape[1], use_cache),
            hidden_states=hidden,  # pyright: ignore[reportArgumentType]
        )
        return output if as_output else output.to_tuple()

    def _step(
        self, ids: Tensor | None, mask: Tensor | None, cache: OpenXLSTMCache | None
    ) -> Tensor | None:
        """The logits (B, 1, V) of one more token per sequence, by the decoder; None if the decoder
        cannot compute this call."""
        if not isinstance(cache, OpenXLSTMCache) or not cache.batch_size or ids is None:
            return None
        if self.training or torch.is_grad_enabled() or ids.shape != (cache.batch_size, 1):
            return None
        if mask is not None and real_tokens(mask, len(ids), 1, cache.get_seq_length()) is not None:
            return None
        return cache.step(self._language[0], ids[:, 0])[:, None]

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `forward` makes an OpenXLSTMCache


def counted(labels: Tensor, real: Tensor) -> Tensor:
    """Labels (B, T) of real tokens that follow real tokens; -100 for the others."""
    after = real.roll(1, dims=1)
    after[:, 0] = True  # shifted away later
    return labels.masked_fill(~(real & after), -100)


@contextmanager
def outputs_of(blocks: nn.ModuleList, wanted: bool | None) -> Iterator[list[Tensor]]:
    """Collects the outputs of the blocks, in order, during the context."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
        for block in (blocks if wanted else ())
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
