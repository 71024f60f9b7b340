"""The language model: token ids in, logits out, state in and out."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from openxlstm.config import ModelConfig
from openxlstm.lm.config_file import read_config, write_config
from openxlstm.lm.folder import fill
from openxlstm.lm.weight_files import open_weights, save_weights
from openxlstm.nn.decoder import Decoder
from openxlstm.nn.dropout import Dropout
from openxlstm.nn.dropout import evaluation_mode as evaluation_mode
from openxlstm.nn.fusion import any_weight as any_weight
from openxlstm.nn.init import small_init_, without_memory
from openxlstm.nn.large_block import soft_cap
from openxlstm.nn.parameters import parameter_groups
from openxlstm.nn.stack import Stack
from openxlstm.nn.step_plan import StepParts
from openxlstm.states import ModelState, tensors


class LanguageModel(nn.Module):
    """Embedding → dropout → stack of blocks → norm → head (arXiv:2405.04517, section 4.2).

    With `config.num_positions`, a learned position embedding is added; all later positions use its
    last row, so that the length is not limited. With large blocks, the logits are softly capped
    (arXiv:2503.13427, section 3.2).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        V, D, P = config.vocab_size, config.embedding_dim, config.num_positions
        self.token_embedding = nn.Embedding(V, D)
        self.position_embedding = nn.Embedding(P, D) if P else None
        self.dropout = Dropout(config.embedding_dropout, config.dropout_kind)
        self.stack = Stack(config)
        self.head = nn.Linear(D, V, bias=False)
        self.logit_soft_cap = config.logit_soft_cap or 0.0
        small_init_(self.token_embedding.weight, D)
        if self.position_embedding is not None:
            small_init_(self.position_embedding.weight, D)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        else:
            small_init_(self.head.weight, D)

    def initial_state(self, batch_size: int) -> ModelState:
        """The empty state of `batch_size` sequences; None in its place means the same."""
        stack = self.stack.initial_state(batch_size)
        device = tensors(stack)[0].device
        return ModelState(stack, torch.zeros(batch_size, dtype=torch.long, device=device))

    def forward(
        self, ids: Tensor, state: ModelState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """Reads T tokens, T ≥ 1: a whole sequence or a single step.

        Args:
            ids: (B, T) int64.
            state: the initial state; None is empty.
            reset: (B, T) bool; the state is emptied before a step where it is true.

        Returns:
            logits (B, T, vocab_size) of the next token at each step, and the state after T.

        Raises:
            ValueError: on shapes that do not fit together.
        """
        if ids.dim() != 2 or 0 in ids.shape:
            raise ValueError(f"ids must be (B, T) with T ≥ 1, not {tuple(ids.shape)}")
        stack_state, start = (None, None) if state is None else state
        x, position = self.embed(ids, start, reset)
        x, stack_state = self.stack(x, stack_state, reset)
        logits = soft_cap(self.head(x), self.logit_soft_cap)
        return logits, ModelState(stack_state, position)

    def embed(
        self, ids: Tensor, position: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeds ids (B, T) for the stack: (B, T, D), and the position of the next token (B,).

        `position` is the position of the first token (B,); None is the start.
        """
        return self.place(self.token_embedding(ids), position, reset)

    def place(
        self, x: Tensor, position: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`embed` for given token embeddings x (B, T, D): adds positions and dropout."""
        positions, next_position = _positions(x, position, reset)
        if self.position_embedding is not None:
            last_row = self.config.num_positions - 1
            x = x + self.position_embedding(positions.clamp(max=last_row))
        return self.dropout(x), next_position

    def decoder(self, state: ModelState) -> Decoder:
        """A decoder, which starts from `state` and reads one token per sequence and call.

        On a CPU it is far faster than `forward`, which it calls where it cannot run natively.
        """
        return Decoder(self, state)

    def step_parts(self) -> StepParts:
        """The parts of the model, for the plan of a decoder."""
        return StepParts(
            LanguageModel,
            self.stack,
            token_embedding=self.token_embedding,
            position_embedding=self.position_embedding,
            dropout=self.dropout,
            head=self.head,
            logit_soft_cap=self.logit_soft_cap,
        )

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer, with weight decay where it applies."""
        return parameter_groups(self, weight_decay)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | None = None, mapped: bool = True
    ) -> Self:
        """Loads the model in a folder that `save_pretrained` or `openxlstm train` wrote.

        The model is in evaluation mode. Its weights are memory-mapped: no byte is read before it is
        used. It can be trained like any other model; the file is never changed.

        Args:
            dtype: dtype of the weights; None keeps that of the file. Another dtype copies them.
            mapped: False copies the weights into memory at once, for a file that another program
                may overwrite in place, which would change the model or end the process. Windows
                always copies, because a mapped file could not be replaced there.

        Raises:
            UserError: if a file is missing or damaged, or the weights do not fit the configuration.
        """
        with without_memory():
            model = cls(read_config(folder, ModelConfig))
        weights = open_weights(folder)
        fill(model, weights, weights.source, dtype=dtype, mapped=mapped)
        return model.eval()

    def save_pretrained(self, folder: str | Path, *, shard_bytes: int | None = None) -> None:
        """Writes `config.json` and `model.safetensors`, each atomically.

        Weights that take more than `shard_bytes` are written to several files and an index.

        Raises:
            OSError: if a file cannot be written.
        """
        tensors = dict(self.named_parameters())  # a tied head once, as the embedding
        save_weights(Path(folder), tensors, shard_bytes=shard_bytes)
        write_config(self.config, folder)


def _positions(x: Tensor, start: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions of the tokens (B, T) and of the next one (B,), counted from the last reset."""
    B, T = x.shape[:2]
    steps = torch.arange(T, device=x.device)
    start = torch.zeros(B, dtype=torch.long, device=x.device) if start is None else start
    position = start[:, None] + steps
    if reset is not None:
        begin = torch.where(reset, steps, -1).cummax(1).values  # the last reset at or before
        position = torch.where(begin >= 0, steps - begin, position)
    return position, position[:, -1] + 1
