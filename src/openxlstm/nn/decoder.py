"""A language model that reads one token at a time, as fast as a CPU can.

`forward` does the same, a small operation at a time; what its fifty calls into torch take is more
than the arithmetic. A decoder runs a whole step in one call. It owns the states that it overwrites;
its weights are the model's own, so that it says what the model was last trained to say. Of a model
in bfloat16 it reads the matrices as they are and keeps the rest, which is small, in float32: states
and all that it computes are float32.

B batch · V tokens
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openxlstm.nn.stack import Stack
from openxlstm.nn.step_plan import (
    in_dtypes,
    layer_plans,
    matrix_dtype,
    norm_options,
    norm_weights,
    own,
    refuses,
)
from openxlstm.ops.native.step import ModelStepWeights, StepPlan, step
from openxlstm.states import ModelState, map_state, select, tensors


class Decoder:
    """Runs the steps of `embedding → stack → head` for some sequences.

    Args:
        tokens, positions: the embeddings; positions may be None.
        stack: the blocks.
        head: from the stack to the logits.
        state: what each sequence has read so far. It is copied.
        logit_soft_cap: how far from 0 a logit may be; 0 for no limit.

    Raises:
        ValueError: where `refuses` has a reason, or if the state is not one of this stack's.
    """

    def __init__(
        self,
        tokens: nn.Embedding,
        positions: nn.Embedding | None,
        stack: Stack,
        head: nn.Linear,
        state: ModelState,
        *,
        logit_soft_cap: float = 0.0,
    ) -> None:
        reason = refuses(stack, tokens, positions, head)
        if reason is not None:
            raise ValueError(f"the native decoder cannot run this model: {reason}")
        _check_state(state, stack)
        self._modules, self._cap = (tokens, positions, stack, head), logit_soft_cap
        self._dtypes = [part.dtype for part in tensors(stack.initial_state(1))]
        self._state: ModelState = own(state, widened=True)
        self._logits = torch.empty(
            len(self._state.position), tokens.num_embeddings, dtype=torch.float32, device="cpu"
        )
        self._size = self._logits.shape[0]
        plan = StepPlan(
            batch_size=self._size,
            dim=stack.config.embedding_dim,
            num_heads=stack.config.num_heads,
            weights=ModelStepWeights(
                tokens=tokens.weight,
                positions=None if positions is None else positions.weight,
                head=head.weight,
                **norm_weights(stack),
            ),
            position=self._state.position,
            layers=layer_plans(stack, self._state.stack),
            out=self._logits,
            dtype=matrix_dtype(stack),
            logit_soft_cap=logit_soft_cap,
            **norm_options(stack),
        )
        # What the plan points to stays alive, even if the model lets go of it, as `model.to` does.
        self._alive = plan, [x.detach() for part in self._parts() for x in part.parameters()]
        self._packed = plan.pack()

    def _parts(self) -> list[nn.Module]:
        return [part for part in self._modules if part is not None]

    def step(self, ids: Tensor) -> Tensor:
        """Reads one token a sequence: ids (B,) int64 → logits (B, V), good until the next step.

        Raises:
            ValueError: if ids are not (B,) int64.
            IndexError: if one of them is no token of the model; nothing has changed then.
        """
        if ids.shape != (self._size,) or ids.dtype != torch.long:
            raise ValueError(
                f"ids must be ({self._size},) int64, not {tuple(ids.shape)} {ids.dtype}"
            )
        step(self._packed, ids.contiguous())
        return self._logits

    @property
    def state(self) -> ModelState:
        """What has been read so far, as a value of its own, in the dtypes of the model's states."""
        stack, position = self._state
        return ModelState(in_dtypes(stack, self._dtypes), position.clone())

    def select(self, rows: Sequence[int]) -> "Decoder":
        """A decoder of some of the sequences, by index, in the order given."""
        state = select(self._state, rows)
        return Decoder(*self._modules, state, logit_soft_cap=self._cap)

    def reorder(self, rows: Sequence[int]) -> None:
        """Sequence i becomes what sequence rows[i] was: the same number of them, an index each."""
        if len(rows) != self._size:
            raise ValueError(f"rows must be {self._size} indices, not {len(rows)}")
        map_state(Tensor.copy_, self._state, select(self._state, rows))


def _check_state(state: ModelState, stack: Stack) -> None:
    expected = stack.initial_state(len(state.position))
    parts, likes = tensors(state.stack), tensors(expected)
    fits = [x.shape for x in parts] == [x.shape for x in likes] and all(
        x.dtype in (like.dtype, torch.float32) for x, like in zip(parts, likes, strict=True)
    )
    if not fits:
        raise ValueError("the state is not one of this model's: shapes or dtypes differ")
