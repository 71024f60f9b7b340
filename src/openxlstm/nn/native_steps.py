"""Single steps of a model: natively while its modules are plain, by calling them otherwise.

The native step reads weights where they are and calls no module. Before each step it is checked
that modules and memory are still those that the step was planned for. Where they are not, it is
planned anew; where a part is not plain any more, the model itself is called.
"""

from abc import ABC, abstractmethod
from typing import Any, Generic

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from openxlstm.nn.dropout import evaluation_mode
from openxlstm.nn.step_plan import Plan, make_plan, why_not_native
from openxlstm.ops.native.backend import extension
from openxlstm.ops.native.step import step
from openxlstm.states import S, map_state, tensors


class NativeSteps(ABC, Generic[S]):
    """Owns the state of B samples and reads one step at a time, without gradients and dropout."""

    def __init__(self, model: Any, state: S) -> None:
        self._model = model
        self._state: S = _copied(state)
        self._batch_size = len(tensors(state)[0])
        self._plan: Plan | None = None
        self._prepare()

    @property
    def fallback_reason(self) -> str | None:
        """Why the next step calls the model's modules, which takes longer; None if it is native."""
        self._prepare_if_changed()
        return self._reason

    @abstractmethod
    def _initial_state(self, batch_size: int) -> S:
        """An empty state of the model as it is now."""

    @abstractmethod
    def _forward(self, x: Tensor, state: S) -> tuple[Tensor, S]:
        """One step by the model's own `forward`."""

    def _prepare_if_changed(self) -> None:
        if (
            self._plan is None
            or RemovableHandle.next_id != self._hooks_seen  # no hook is registered without one
            or not extension().is_unchanged(self._plan.watched)
        ):
            self._prepare()

    def _prepare(self) -> None:
        """Plans the native step for the model as it is now, or finds out why it cannot run."""
        self._hooks_seen = RemovableHandle.next_id
        like = self._initial_state(1)
        self._dtypes = [part.dtype for part in tensors(like)]
        self._reason = why_not_native(self._model)
        if self._reason is None:
            self._state = map_state(_native, self._state)
            try:
                self._plan = make_plan(self._model, self._state, self._batch_size)
            except ValueError as error:  # sizes that do not fit together, after a part was replaced
                self._reason = str(error)
        if self._reason is not None:
            self._plan = None  # it holds on to the weights that it was made for
            self._state = _like(self._state, like)

    def _native_step(self, x: Tensor, name: str) -> Tensor:
        """The result of one native step of x, called `name`, which the next one overwrites."""
        plan = self._plan
        assert plan is not None
        if plan.widened:  # vectors of a model in bfloat16, which training may have changed
            torch._foreach_copy_(plan.widened, plan.stored)  # pyright: ignore[reportPrivateImportUsage]
        step(plan.packed, x.contiguous(), name)
        return plan.out

    def _called_step(self, x: Tensor) -> Tensor:
        """The result of one step by the model's own modules."""
        with evaluation_mode(self._model), torch.no_grad():
            y, self._state = self._forward(x, self._state)
        return y

    def _state_copy(self) -> S:
        """The state as a value of its own, in the dtypes of the model's states."""
        each = iter(self._dtypes)
        return map_state(lambda part: part.to(next(each), copy=True), self._state)


def _copied(state: S) -> S:
    return map_state(lambda x: x.detach().clone(memory_format=torch.contiguous_format), state)


def _native(part: Tensor) -> Tensor:
    """A part of a state as the native step reads and overwrites it."""
    dtype = torch.float32 if part.is_floating_point() else part.dtype
    return part.to("cpu", dtype).contiguous()


def _like(state: Any, like: Any) -> Any:
    """A state in the dtypes of another and on its device; one on the meta device has none."""

    def convert(part: Tensor, other: Tensor) -> Tensor:
        return part.to(part.device if other.is_meta else other.device, other.dtype)

    return map_state(convert, state, like)
