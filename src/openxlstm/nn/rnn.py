"""xLSTM as a recurrent layer in the way of `torch.nn.LSTM`.

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
    """A stack of xLSTM blocks with the constructor, the shapes and the manners of `torch.nn.LSTM`.

        rnn = openxlstm.XLSTM(input_size=8, hidden_size=128, num_layers=2, batch_first=True)
        y, state = rnn(x)           # from an empty state
        y, state = rnn(x, state)    # goes on where the last call stopped

    The input is projected to `hidden_size` where it has another width. Blocks are those of
    arXiv:2405.04517, figures 10 and 11, unless `block` says otherwise.

    Args:
        input_size: I, features of the input.
        hidden_size: H, width of the blocks and, for each direction, of the output.
        num_layers: how many blocks; `layers` is repeated or cut to it. None for as many as `layers`
            has letters.
        bias: whether the projections inside of the blocks have biases; gates always do.
        batch_first: x and y are (B, T, …) rather than (T, B, …).
        dropout: share of each sub-layer's output that is dropped in training; of bare blocks the
            share between layers, as in `torch.nn.LSTM`.
        bidirectional: a second stack reads from the end; y has its features after the first's.
        layers: a letter a block, from the input up: s for sLSTM, which tracks states, m for mLSTM,
            which stores associations.
        num_heads: heads of each cell, a divisor of hidden_size.
        block: "paper" with norm, residual, convolution and feed-forward; "large", that of xLSTM-7B
            (m only); "bare", the cells and their projections alone, as `torch.nn.LSTM`'s layers
            are, with |y| < 1 for an s.
        project_input: whether to project the input; None for where input_size is not hidden_size.
            Heads meet there, in feed-forwards and between layers: a single bare sLSTM without it
            keeps H/num_heads features for themselves.
        device, dtype: of the parameters.
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
        """How many blocks an input passes."""
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
            state: where to start, as a call before returned it; None is empty. A single sample's is
                that of a batch of 1.
            reset: bool, laid out as x without its features; the state is emptied before a step
                where it is true, as a new episode or document wants.
            lengths: steps of each sample that are no padding (B,), each from 1 to T, in any order;
                what is in the padding changes nothing. None for all of T.

        Returns:
            y, laid out as x with H·directions features and 0 in the padding (a PackedSequence for
            a PackedSequence), and the state of each sample after its own last step.

        Raises:
            ValueError: if x, state, reset or lengths have another shape, dtype or device than said,
                or x has numbers that are not finite (looked for on a CPU, not while compiling).
        """
        if isinstance(x, PackedSequence):
            if reset is not None or lengths is not None:
                raise ValueError("reset and lengths go with a padded x, not with a PackedSequence")
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
        """A stepper reads one step per call, from `state` (None is empty) on, ten times as fast as
        calling this module: for streams, robots and whatever needs an answer now.

            stepper = rnn.stepper()
            y = stepper.step(x)     # (1, input_size) → (1, hidden_size)

        It has no gradients and no dropout, and keeps its state itself.

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
        """x (B, T, I) → y (B, T, H·directions) and the state after it."""
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
            x = self.in_proj(x).to(self._parameter.dtype)  # autocast would narrow the stream
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
    """y (B, T, H) of x (B, T, H), with lengths 0 in the padding, and the state after it."""
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
            raise ValueError(f"num_layers must be a whole number from 1 on, not {num_layers!r}")
        layers = (layers * num_layers)[:num_layers]
    values = {"embedding_dim": hidden_size, "layers": layers, **options}
    try:
        return StackConfig.from_options(**values)
    except UserError as error:
        raise ValueError(_in_the_callers_words(str(error))) from None


def _in_the_callers_words(message: str) -> str:
    """What is a stack's embedding_dim is an XLSTM's hidden_size."""
    return message.replace("StackConfig", "XLSTM").replace("embedding_dim", "hidden_size")


def input_projection(
    input_size: int, hidden_size: int, project_input: bool | None
) -> nn.Linear | None:
    """What makes an input of input_size one of hidden_size, where it has to be made.

    Raises:
        ValueError: if it has to, and shall not.
    """
    if not isinstance(input_size, int) or input_size < 1:
        raise ValueError(f"input_size must be a whole number from 1 on, not {input_size!r}")
    differs = input_size != hidden_size
    if project_input is False and differs:
        raise ValueError(
            f"project_input=False needs input_size={input_size} to be hidden_size={hidden_size}"
        )
    return nn.Linear(input_size, hidden_size) if differs or project_input else None
