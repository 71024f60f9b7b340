"""`XLSTM` beside `torch.nn.LSTM`: the same calls, the same shapes, and a word about mistakes."""

import inspect
from typing import Any

import pytest
import torch
from rnn_cases import KINDS, H, I, content, make_rnn, random_state
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

from openxlstm import XLSTM, XLSTMState, states
from openxlstm.nn.stack import Stack

B, T = 4, 9
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_shapes_are_those_of_lstm(batch_first: bool, bidirectional: bool, num_layers: int) -> None:
    options: dict[str, Any] = {
        "num_layers": num_layers, "batch_first": batch_first, "bidirectional": bidirectional,
    }  # fmt: skip
    lstm, ours = nn.LSTM(I, H, **options), XLSTM(I, H, **options)
    samples = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I)
    lengths = torch.tensor([3, 9, 5, 1])
    packed = pack_padded_sequence(samples, lengths, batch_first, enforce_sorted=False)
    for x in (samples, torch.randn(T, I)):
        assert ours(x)[0].shape == lstm(x)[0].shape
        assert ours(x)[0].dtype == torch.float32
    y, expected = ours(packed)[0], lstm(packed)[0]
    assert isinstance(y, PackedSequence)
    assert y.data.shape == expected.data.shape
    for ours_part, part in zip(y[1:], expected[1:], strict=True):
        assert part is not None
        assert ours_part is not None
        assert torch.equal(ours_part, part)


def test_positional_arguments_are_those_of_lstm() -> None:
    names = list(inspect.signature(XLSTM).parameters)
    assert names[:7] == [
        "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
        "bidirectional",
    ]  # fmt: skip
    rnn = XLSTM(I, H, 2, True, True, 0.5, True)
    assert rnn.num_layers == 2
    assert rnn.config.bias
    assert rnn.batch_first
    assert rnn.config.dropout == 0.5
    assert rnn.bidirectional


def test_training_code_for_lstm_runs() -> None:
    """The layer inside of somebody's module, and an optimizer, as they are."""

    class Model(nn.Module):
        def __init__(self, kind: type[nn.Module]) -> None:
            super().__init__()
            self.lstm = kind(I, H, num_layers=2, batch_first=True, dropout=0.1)
            self.head = nn.Linear(H, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.lstm.flatten_parameters()  # pyright: ignore[reportCallIssue]
            y, _ = self.lstm(x)
            return self.head(y[:, -1])

    torch.manual_seed(0)
    model = Model(XLSTM)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    x = torch.randn(64, 12, I)
    target = x[:, :3].sum((1, 2))[:, None]
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("num_layers", "layers", "expected"),
    [(None, "s", "s"), (3, "s", "sss"), (1, "ms", "m"), (5, "ms", "msmsm"), (None, "ms", "ms")],
)
def test_layers_are_repeated_or_cut(num_layers: int | None, layers: str, expected: str) -> None:
    assert XLSTM(I, H, num_layers, layers=layers).config.layers == expected


def test_one_block_is_a_stack_behind_a_projection() -> None:
    rnn = make_rnn("sms")
    x = torch.randn(B, T, I, dtype=torch.float64)
    assert isinstance(rnn.in_proj, nn.Linear)
    y, after = rnn(x)
    expected, expected_after = rnn.stack(rnn.in_proj(x))
    assert torch.equal(y, expected)
    for ours, theirs in zip(states.tensors(after), states.tensors(expected_after), strict=True):
        assert torch.equal(ours, theirs)


def test_projection_is_there_where_it_must_be() -> None:
    assert XLSTM(I, H).in_proj is not None
    assert XLSTM(H, H).in_proj is None
    assert XLSTM(H, H, project_input=True).in_proj is not None
    with pytest.raises(ValueError, match="project_input=False needs input_size=3"):
        XLSTM(I, H, project_input=False)


@each_kind
def test_time_first_is_batch_first_turned(kind: str) -> None:
    rnn = make_rnn(kind)
    x = torch.randn(B, T, I, dtype=torch.float64)
    state, reset, lengths = random_state(rnn, B), torch.rand(B, T) < 0.3, [9, 2, 5, 7]
    y, after = rnn(x, state, reset=reset, lengths=lengths)
    rnn.batch_first = False
    turned, after_turned = rnn(x.transpose(0, 1), state, reset=reset.T, lengths=lengths)
    assert torch.equal(turned.transpose(0, 1), y)
    assert_close(rnn.last_output(turned, lengths), last_real(y, lengths, rnn))
    for name, part in content(after_turned).items():
        assert torch.equal(part, content(after)[name])


def last_real(y: Tensor, lengths: list[int], rnn: XLSTM) -> Tensor:
    """`last_output`, a sample at a time; y (B, T, ·)."""
    rows = []
    for row, length in zip(y, lengths, strict=True):
        end, begin = row[length - 1], row[0]
        rows.append(torch.cat([end[:H], begin[H:]]) if rnn.bidirectional else end)
    return torch.stack(rows)


@each_kind
def test_single_sample_is_a_batch_of_one(kind: str) -> None:
    rnn = make_rnn(kind)
    x, reset = torch.randn(T, I, dtype=torch.float64), torch.rand(T) < 0.3
    state = random_state(rnn, 1)
    y, after = rnn(x, state, reset=reset, lengths=[6])
    expected, expected_after = rnn(x[None], state, reset=reset[None], lengths=[6])
    assert torch.equal(y, expected[0])
    assert torch.equal(rnn.last_output(y, [6]), rnn.last_output(expected, [6])[0])
    for name, part in content(after).items():
        assert torch.equal(part, content(expected_after)[name])


@each_kind
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_packed_equals_padded(kind: str, enforce_sorted: bool, with_state: bool) -> None:
    rnn = make_rnn(kind)
    x = torch.randn(B, T, I, dtype=torch.float64)
    lengths = torch.tensor([9, 5, 5, 2] if enforce_sorted else [5, 2, 9, 5])
    state = random_state(rnn, B) if with_state else None
    packed = pack_padded_sequence(x, lengths, True, enforce_sorted=enforce_sorted)
    y, after = rnn(packed, state)
    expected, expected_after = rnn(x, state, lengths=lengths)
    padded, _ = pad_packed_sequence(y, batch_first=True)
    assert_close(padded, expected)
    assert_close(rnn.last_output(y), rnn.last_output(expected, lengths))
    assert_close(rnn.last_output(y), last_real(expected, lengths.tolist(), rnn))
    for name, part in content(expected_after).items():
        assert_close(content(after)[name], part, name)


def test_gradients_reach_a_packed_sequence() -> None:
    rnn = make_rnn("sms")
    samples = [torch.randn(n, I, dtype=torch.float64, requires_grad=True) for n in (2, 5, 3)]
    y, _ = rnn(pack_sequence(samples, enforce_sorted=False))
    y.data.square().sum().backward()
    for sample in samples:
        assert sample.grad is not None
        assert sample.grad.ne(0).any()


@each_kind
def test_both_directions_by_hand(kind: str) -> None:
    """The second stack reads the reversed input, for itself."""
    both = make_rnn(kind, bidirectional=True)
    x = torch.randn(B, T, I, dtype=torch.float64)
    y, _ = both(x)
    assert both.in_proj is not None
    assert isinstance(both.reverse_stack, Stack)
    ahead, _ = both.stack(both.in_proj(x))
    back, _ = both.reverse_stack(both.in_proj(x.flip(1)))
    assert_close(y, torch.cat([ahead, back.flip(1)], dim=-1))
    assert_close(both.last_output(y), torch.cat([ahead[:, -1], back[:, -1]], dim=-1))


@each_kind
def test_state_is_a_value(kind: str) -> None:
    """Nothing keeps it, nothing overwrites it; an empty one is None; it can be cut off."""
    rnn = make_rnn(kind)
    x = torch.randn(B, T, I, dtype=torch.float64)
    y, after = rnn(x)
    from_empty, _ = rnn(x, rnn.initial_state(B))
    assert_close(from_empty, y)
    before = [part.clone() for part in states.tensors(after)]
    rnn(x, after)
    assert all(torch.equal(a, b) for a, b in zip(before, states.tensors(after), strict=True))
    assert any(part.requires_grad for part in states.tensors(after))
    assert not any(part.requires_grad for part in states.tensors(after.detach()))
    halves = states.stack([after.select([0, 1]), after.select(torch.tensor([2, 3]))])
    assert isinstance(halves, XLSTMState)
    assert_close(rnn(x, halves)[0], rnn(x, after)[0])


@each_kind
def test_gradient_goes_through_the_state(kind: str) -> None:
    rnn = make_rnn(kind)
    x = torch.randn(B, T, I, dtype=torch.float64, requires_grad=True)
    _, state = rnn(x)
    y, _ = rnn(torch.randn(B, 2, I, dtype=torch.float64), state)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    assert grad.abs().sum(-1).gt(0).all()


def test_dropout_is_for_training_only() -> None:
    for block in ("paper", "bare"):
        rnn = XLSTM(I, H, layers="ss", dropout=0.5, block=block)
        x = torch.randn(T, B, I)
        assert not torch.equal(rnn(x)[0], rnn(x)[0])
        rnn.eval()
        assert torch.equal(rnn(x)[0], rnn(x)[0])


def test_dropout_of_bare_blocks_is_between_them() -> None:
    """As that of `torch.nn.LSTM`: a single layer has none."""
    rnn = XLSTM(I, H, block="bare", dropout=0.9)
    x = torch.randn(T, B, I)
    assert torch.equal(rnn(x)[0], rnn(x)[0])


def test_device_and_dtype_are_those_of_the_parameters() -> None:
    rnn = XLSTM(I, H, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in rnn.parameters()} == {("meta", torch.float64)}
    y, state = rnn(torch.empty(T, B, I, device="meta", dtype=torch.float64))
    assert y.device.type == "meta"
    assert {part.device.type for part in states.tensors(state)} == {"meta"}


def test_extra_precision_of_a_state() -> None:
    rnn = XLSTM(I, H, dtype=torch.bfloat16)
    y, state = rnn(torch.randn(T, B, I, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    cell = state.forward.blocks[0].cell
    assert {part.dtype for part in cell} == {torch.float32}


def test_autocast_takes_what_its_products_give() -> None:
    for kind in KINDS:
        rnn = make_rnn(kind, dtype=torch.float32)
        x = torch.randn(B, T, I)
        with torch.autocast("cpu", torch.bfloat16):
            y, state = rnn(x.bfloat16())
        assert_close(y.float(), rnn(x)[0], kind, tolerance=0.1)
        assert torch.float32 in {part.dtype for part in states.tensors(state)}


x = torch.randn(T, B, I)
state = XLSTM(I, H)(x)[1]
hole = x.clone()
hole[2, 1, 0] = float("nan")
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "features": (
        {"x": torch.randn(T, B, 5)},
        r"x must be .* with I = 3, not \(9, 4, 5\)",
    ),
    "dimensions": ({"x": torch.randn(T, B, 1, I)}, r"x must be \(T, B, I\) or \(T, I\)"),
    "no steps": ({"x": x[:0]}, "a dimension of size 0"),
    "no samples": ({"x": x[:, :0]}, "a dimension of size 0"),
    "dtype": ({"x": x.double()}, r"x must be torch.float32, like the weights, not torch.float64"),
    "whole numbers": ({"x": x.long()}, "x must be torch.float32"),
    "no tensor": ({"x": [[1.0]]}, "x must be a tensor, not list"),
    "device": ({"x": x.to("meta")}, "x must be on cpu, like the weights, not meta"),
    "nan": ({"x": hole}, r"x must be finite, but 1 of its 108 numbers are not.*nan at \[1, 2, 0\]"),
    "infinite": ({"x": x / 0}, "x must be finite"),
    "lstm's state": ({"state": (x, x)}, "state must be of type XLSTMState.*not of type tuple"),
    "stack's state": ({"state": state.forward}, "state must be of type XLSTMState"),
    "batch of the state": ({"x": x[:, :3]}, r"state.*must be \(3, .*not \(4, "),
    "dtype of the state": ({"state": state.to(torch.float64)}, "state.*float32, not .*float64"),
    "device of the state": ({"state": state.to("meta")}, "state.* must be on cpu, not meta"),
    "layers of the state": (
        {"state": XLSTM(I, H, 2)(x)[1]},
        r"state.forward.blocks must have 1 parts, not 2",
    ),
    "kind of the state": (
        {"state": XLSTM(I, H, layers="m", mlstm_conv_kernel_size=0)(x)[1]},
        r"state.forward.blocks\[0\].conv must be of type ConvState",
    ),
    "directions of the state": (
        {"state": XLSTM(I, H, bidirectional=True)(x)[1]},
        r"state.reverse must be None",
    ),
    "reset's layout": ({"reset": torch.zeros(B, T).bool()}, r"reset must .* \(9, 4\), not"),
    "reset's dtype": ({"reset": torch.zeros(T, B)}, "reset must be torch.bool"),
    "length 0": ({"lengths": [9, 0, 1, 1]}, "lengths must be from 1 to T = 9, not from 0 to 9"),
    "length too long": ({"lengths": [10, 1, 1, 1]}, "lengths must be from 1 to T = 9"),
    "number of lengths": ({"lengths": [9, 9]}, "lengths must be 4 integers, one per sample"),
    "broken lengths": ({"lengths": torch.ones(B)}, "lengths must be 4 integers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_call_is_named(mistake: str) -> None:
    changes, message = MISTAKES[mistake]
    arguments = {"x": x, "state": state, **changes}
    with pytest.raises(ValueError, match=message):
        XLSTM(I, H)(arguments.pop("x"), arguments.pop("state"), **arguments)


def test_mistakes_with_packed_sequences() -> None:
    rnn = XLSTM(I, H)
    rising = PackedSequence(torch.randn(3, I), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"batch_sizes rise: \[1, 2\]"):
        rnn(rising)
    packed = pack_sequence([torch.randn(3, I), torch.randn(2, I)])
    with pytest.raises(ValueError, match="lengths need a padded x"):
        rnn(packed, lengths=[3, 2])
    with pytest.raises(ValueError, match=r"x.data must be torch.float32"):
        rnn(packed.double())
    with pytest.raises(ValueError, match="x must be finite"):
        rnn(pack_sequence([torch.full((3, I), float("nan"))]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 18}, "hidden_size=18 is not a multiple of num_heads=4"),
        ({"hidden_size": 18, "block": "bare"}, "hidden_size=18 is not a multiple of num_heads=4"),
        ({"hidden_size": 0}, "hidden_size must be positive, not 0"),
        ({"hidden_size": 16.0}, "hidden_size must be int"),
        ({"input_size": 0}, "input_size must be a positive integer, not 0"),
        ({"num_layers": 0}, "num_layers must be a positive integer, not 0"),
        ({"num_layers": "ms"}, "num_layers must be a positive integer, not 'ms'"),
        ({"layers": ""}, "layers is empty"),
        ({"layers": "sx"}, "unknown letter 'x'"),
        ({"dropout": 1.5}, r"dropout must be in \[0, 1\), not 1.5"),
        ({"block": "huge"}, "block must be paper or large or bare, not 'huge'"),
        ({"block": "large"}, "block='large' has no sLSTM"),
        ({"proj_size": 8}, "XLSTM has no option 'proj_size'"),
    ],
)
def test_a_mistake_in_the_constructor_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        XLSTM(**{"input_size": I, "hidden_size": H, **options})
