"""A stack of blocks, between an embedding and a head."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openxlstm.config import StackConfig
from openxlstm.nn.bare import BareBlock
from openxlstm.nn.block import Block
from openxlstm.nn.large_block import LargeBlock, rms_norm
from openxlstm.nn.norm import LayerNorm, RMSNorm
from openxlstm.states import StackState

BLOCKS = {"paper": Block, "large": LargeBlock, "bare": BareBlock}


class Stack(nn.Module):
    """One block per letter of `config.layers`, then a norm (none after bare blocks, or if
    `config.final_norm` is false).

    x (B, T, D) → (B, T, D).
    """

    recompute_blocks: bool = False
    """Whether to keep only the input of each block and recompute the block in the backward pass."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        kind = BLOCKS[config.block.kind]
        self.blocks = nn.ModuleList(kind(config, index) for index in range(len(config.layers)))
        self.norm: LayerNorm | RMSNorm | nn.Identity = final_norm(config)

    def initial_state(self, batch_size: int) -> StackState:
        """The empty state, on the parameters' device."""
        return StackState(tuple(block.initial_state(batch_size) for block in self.blocks))  # pyright: ignore

    def forward(
        self, x: Tensor, state: StackState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, StackState]:
        """Runs T steps.

        Args:
            x: (B, T, D).
            state: the initial state; None is empty.
            reset: (B, T) bool; the state is emptied before a step where it is true.
        """
        states = [None] * len(self.blocks) if state is None else state.blocks
        after = []
        for block, before in zip(self.blocks, states, strict=True):
            if self.recompute_blocks and torch.is_grad_enabled():
                x, block_state = checkpoint(block, x, before, reset, use_reentrant=False)
            else:
                x, block_state = block(x, before, reset)
            after.append(block_state)
        return self.norm(x), StackState(tuple(after))


def final_norm(config: StackConfig) -> LayerNorm | RMSNorm | nn.Identity:
    """The norm after the last block, or an identity."""
    if config.block.kind == "bare" or not config.final_norm:
        return nn.Identity()
    return rms_norm(config) if config.block.kind == "large" else LayerNorm(config.embedding_dim)
