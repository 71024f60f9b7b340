"""`XLSTM`, a recurrent layer with the interface of `torch.nn.LSTM`.

B batch · T steps · I input_size · H hidden_size · directions 1 or 2
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from openxlstm.config import BlockConfig, BlockKind, StackConfig
from openxlstm.errors import UserError
from openxlstm.nn.check import check_finite, check_input, check_lengths, check_reset, check_state
from openxlstm.nn.fusion import any_weight
from openxlstm.nn.padding import is_real, reverse, reverse_reset, run_padded, take
from openxlstm.nn.stack import Stack
from openxlstm.nn.step_plan import StepParts
from openxlstm.nn.stepper import Stepper
from openxlstm.states import StackState, XLSTMState


class XLSTM(nn.Module):
    """A stack of xLSTM blocks with the arguments and shapes of `torch.nn.LSTM`.

        rnn = openxlstm.XLSTM(input_size=8, hidden_size=128, num_layers=2, batch_first=True)
        y, state = rnn(x)           # from an empty state
        y, state = rnn(x, state)    # continues where the last call stopped

    The input is projected to `hidden_size` if its width differs. The blocks are those of
    arXiv:2405.04517, figures 10 and 11, unless `block` selects another kind.

    Args:
        input_size: I, features of the input.
        hidden_size: H, width of the blocks and, for each direction, of the output.
        num_layers: number of blocks; `layers` is repeated or cut to it. None for one block per
            letter of `layers`.
        bias: whether the projections inside the blocks have biases; gates always do.
        batch_first: x and y are (B, T, …) rather than (T, B, …).
        dropout: probability of dropping an element of a sub-layer's output in training; with bare
            blocks, of the output between layers, as in `torch.nn.LSTM`.
        bidirectional: a second stack reads from the end; its features follow the first's in y.
        layers: one letter per block, from the input up: s for sLSTM, which tracks states, m for
            mLSTM, which stores associations.
        num_heads: heads of each cell, a divisor of hidden_size.
        block: "paper" with norm, residual, convolution and feed-forward; "large", the block of
            xLSTM-7B (m only); "bare", only the cells with their projections, like the layers of
            `torch.nn.LSTM`, with |y| < 1 for an s.
        project_input: whether to project the input; None to do so if input_size is not hidden_size.
            Heads are mixed there, in feed-forwards and between layers. Without it, the heads of a
            single bare sLSTM are independent.
        device, dtype: device and dtype of the parameters.
        options: any other field of `openxlstm.StackConfig` or of the block's configuration, e.g.
            slstm_conv_kernel_size=0 or, with block="large", qk_dim_factor=1.0.

    Raises:
        ValueError: on sizes that do not fit together, or an unknown option.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int | None = None,
        bias: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        layers: str = "s",
        num_heads: int = 4,
        block: BlockKind | BlockConfig = "paper",
        project_input: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        config = stack_config(
            hidden_size, num_layers, layers,
            num_heads=num_heads, bias=bias, dropout=dropout, block=block, **options,
        )  # fmt: skip
        self.input_size, self.hidden_size, self.config = input_size, hidden_size, config
        self.batch_first, self.bidirectional = batch_first, bidirectional
        self.in_proj = input_projection(input_size, hidden_size, project_input)
        self.stack = Stack(config)
        self.reverse_stack = Stack(config) if bidirectional else None
        self.to(device=device, dtype=dtype)

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.config.layers)

    def initial_state(self, batch_size: int) -> XLSTMState:
        """The empty state of `batch_size` samples; None in its place means the same."""
        reverse_stack = self.reverse_stack
        return XLSTMState(
            self.stack.initial_state(batch_size),
            None if reverse_stack is None else reverse_stack.initial_state(batch_size),
        )

    def forward(
        self,
        x: Tensor | PackedSequence,
        state: XLSTMState | None = None,
        *,
        reset: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Any, XLSTMState]:
        """Reads T steps, T ≥ 1, of each sample.

        Args:
            x: (T, B, I), with `batch_first` (B, T, I), for a single sample (T, I); or a
                PackedSequence.
            state: the initial state, as returned by a previous call; None is empty. The state of a
                single sample is that of a batch of 1.
            reset: bool, with the shape of x without its features; the state is emptied before a
                step where it is true, where a new episode or document begins.
            lengths: length of each sample without padding (B,), from 1 to T, in any order. The
                padding has no effect. None if there is no padding.

        Returns:
            y, with the layout of x, H·directions features and 0 in the padding (a PackedSequence
            for a PackedSequence), and the state of each sample after its own last step.

        Raises:
            ValueError: if x, state, reset or lengths have a wrong shape, dtype or device, or x is
                not finite (checked on a CPU only, and not while compiling).
        """
        if isinstance(x, PackedSequence):
            if reset is not None or lengths is not None:
                raise ValueError("reset and lengths need a padded x, not a PackedSequence")
            return self._forward_packed(x, state)
        dims = "(B, T, I) or (T, I)" if self.batch_first else "(T, B, I) or (T, I)"
        x = check_input("x", x, self.input_size, dims, (2, 3), self._parameter)
        check_reset(reset, x)
        is_batch, turn = x.dim() == 3, x.dim() == 3 and not self.batch_first
        if not is_batch:
            x, reset = x[None], None if reset is None else reset[None]
        if turn:
            x, reset = x.transpose(0, 1), None if reset is None else reset.T
        y, after = self._read(x, state, reset, lengths)
        y = y if is_batch else y[0]
        return (y.transpose(0, 1) if turn else y), after

    def stepper(self, batch_size: int = 1, state: XLSTMState | None = None) -> Stepper:
        """A stepper that reads one step per call, starting from `state` (None is empty), ten times
        as fast as calling this module: for streams and control.

            stepper = rnn.stepper()
            y = stepper.step(x)     # (1, input_size) → (1, hidden_size)

        It computes no gradients and no dropout, and holds its state.

        Args:
            batch_size: B, how many samples.
            state: of that many samples, as a call of this module returned it.

        Raises:
            ValueError: if the module reads in both directions, or the state does not fit.
        """
        if self.reverse_stack is not None:
            raise ValueError("a bidirectional layer has to see the end first; it cannot be stepped")
        if state is None:
            state = self.initial_state(batch_size)
        check_state(state, self.initial_state(0), batch_size)
        return Stepper(self, state.forward)

    def step_parts(self) -> StepParts:
        """The parts that a stepper plans for."""
        return StepParts(XLSTM, self.stack, in_proj=self.in_proj)

    def last_output(
        self, y: Tensor | PackedSequence, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor:
        """What each direction said after it had read everything: (B, H·directions), of a single
        sample (H·directions,). It stands where code for `torch.nn.LSTM` reads `h_n[-1]`.

        Args:
            y: an output of this module.
            lengths: those that it was called with.
        """
        if isinstance(y, PackedSequence):
            y, lengths = pad_packed_sequence(y, batch_first=True)
        elif y.dim() == 2:
            return self.last_output(y[None] if self.batch_first else y[:, None], lengths)[0]
        elif not self.batch_first:
            y = y.transpose(0, 1)
        B, T, H = len(y), y.shape[1], self.hidden_size
        if lengths is None:
            end = y[:, -1]
        else:
            end = take(y, check_lengths(lengths, B, T, y.device)[:, None] - 1)[:, 0]
        return torch.cat([end[:, :H], y[:, 0, H:]], dim=-1) if self.bidirectional else end

    def flatten_parameters(self) -> None:
        """Does nothing: it is here for code that calls `torch.nn.LSTM.flatten_parameters`."""

    def extra_repr(self) -> str:
        said = f"{self.input_size}, {self.hidden_size}, layers={self.config.layers!r}"
        said += f", num_heads={self.config.num_heads}"
        if self.config.block.kind != "paper":
            said += f", block={self.config.block.kind!r}"
        return said + "".join(
            f", {name}=True" for name in ("batch_first", "bidirectional") if getattr(self, name)
        )

    @property
    def _parameter(self) -> Tensor:
        """A weight, which tells the device and the dtype of all."""
        return any_weight(self)

    def _forward_packed(
        self, x: PackedSequence, state: XLSTMState | None
    ) -> tuple[PackedSequence, XLSTMState]:
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(
                "openxlstm unpacks a PackedSequence, whose sizes are data: in one graph give the "
                "padded tensor and lengths"
            )
        sizes = x.batch_sizes
        if bool((sizes[1:] > sizes[:-1]).any()):
            raise ValueError(
                f"x must be packed from the longest sample to the shortest, and its batch_sizes "
                f"rise: {sizes.tolist()}; make it with pack_padded_sequence"
            )
        check_input("x.data", x.data, self.input_size, "(steps, I)", (2,), self._parameter)
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        y, after = self._read(padded, state, None, lengths)
        if x.sorted_indices is not None:
            y, lengths = y[x.sorted_indices], lengths[x.sorted_indices.cpu()]
        packed = pack_padded_sequence(y, lengths, batch_first=True)
        return PackedSequence(packed.data, sizes, x.sorted_indices, x.unsorted_indices), after

    def _read(
        self,
        x: Tensor,
        state: XLSTMState | None,
        reset: Tensor | None,
        lengths: Tensor | Sequence[int] | None,
    ) -> tuple[Tensor, XLSTMState]:
        """x (B, T, I) → y (B, T, H·directions) and the state after the last step."""
        B, T, _ = x.shape
        if state is not None:
            check_state(state, self.initial_state(0), B)
        if lengths is not None:
            lengths = check_lengths(lengths, B, T, x.device)
            real = is_real(lengths, T)
            x = x.masked_fill(~real[..., None], 0.0)
            reset = None if reset is None else reset & real
        check_finite("x", x)
        if self.in_proj is not None:
            x = self.in_proj(x).to(self._parameter.dtype)  # autocast would change the dtype
        before, before_reverse = (None, None) if state is None else state
        y, after = _through(self.stack, x, before, reset, lengths)
        if self.reverse_stack is None:
            return y, XLSTMState(after, None)
        y_reverse, after_reverse = _through(
            self.reverse_stack,
            reverse(x, lengths),
            before_reverse,
            None if reset is None else reverse_reset(reset, lengths),
            lengths,
        )
        y_reverse = reverse(y_reverse, lengths)
        if lengths is not None:
            y_reverse = y_reverse.masked_fill(~is_real(lengths, T)[..., None], 0.0)
        return torch.cat([y, y_reverse], dim=-1), XLSTMState(after, after_reverse)


def _through(
    stack: Stack,
    x: Tensor,
    state: StackState | None,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, StackState]:
    """x (B, T, H) → y (B, T, H), with lengths 0 in the padding, and the state after it."""
    if lengths is None:
        return stack(x, state, reset)
    return run_padded(stack, x, state, reset, lengths)


def stack_config(
    hidden_size: int, num_layers: int | None, layers: str, **options: Any
) -> StackConfig:
    """The configuration of the blocks.

    Raises:
        ValueError: on sizes that do not fit together, or an unknown option.
    """
    if num_layers is not None:
        if not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(f"num_layers must be a positive integer, not {num_layers!r}")
        layers = (layers * num_layers)[:num_layers]
    values = {"embedding_dim": hidden_size, "layers": layers, **options}
    try:
        return StackConfig.from_options(**values)
    except UserError as error:
        raise ValueError(_in_the_callers_words(str(error))) from None


def _in_the_callers_words(message: str) -> str:
    """Replaces names of `StackConfig` in a message by those of `XLSTM`."""
    return message.replace("StackConfig", "XLSTM").replace("embedding_dim", "hidden_size")


def input_projection(
    input_size: int, hidden_size: int, project_input: bool | None
) -> nn.Linear | None:
    """The projection from input_size to hidden_size; None if no projection is needed or wanted.

    Raises:
        ValueError: if it is needed but project_input is False, or a size is invalid.
    """
    if not isinstance(input_size, int) or input_size < 1:
        raise ValueError(f"input_size must be a positive integer, not {input_size!r}")
    differs = input_size != hidden_size
    if project_input is False and differs:
        raise ValueError(
            f"project_input=False needs input_size={input_size} to be hidden_size={hidden_size}"
        )
    return nn.Linear(input_size, hidden_size) if differs or project_input else None
