"""States as files: whatever the kind, what comes back is what went in; what is no state is told."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rnn_cases import KINDS, make_rnn, random_state
from safetensors.torch import save_file

from openxlstm import (
    XLSTM,
    LanguageModel,
    ModelConfig,
    SLSTMCell,
    UserError,
    load_state,
    save_state,
    states,
)  # fmt: skip


def equal(a: object, b: object) -> bool:
    """Whether two states have the same types, tensors and holes."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return a is None and b is None


@pytest.mark.parametrize("kind", KINDS)
@given(dtype=st.sampled_from([torch.float32, torch.float64]), B=st.integers(1, 3))
def test_what_comes_back_is_what_went_in(
    kind: str, dtype: torch.dtype, B: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    state = random_state(make_rnn(kind, dtype=dtype), B)
    save_state(state, path)
    assert equal(load_state(path), state)


def test_a_stream_goes_on_from_a_file(tmp_path: Path) -> None:
    rnn, x = make_rnn("sms", dtype=torch.float32), torch.randn(2, 20, 3)
    whole, _ = rnn(x)
    _, state = rnn(x[:, :12])
    save_state(state, tmp_path / "state.safetensors")
    rest, _ = rnn(x[:, 12:], load_state(tmp_path / "state.safetensors"))
    torch.testing.assert_close(rest, whole[:, 12:])


def test_states_of_models_and_cells_too(tmp_path: Path) -> None:
    model = LanguageModel(ModelConfig(vocab_size=9, embedding_dim=16, layers="ms"))
    _, of_model = model(torch.randint(9, (2, 5)))
    _, of_cell = SLSTMCell(3, 16)(torch.randn(2, 3))
    for state in (of_model, of_cell, of_model.stack.blocks[1]):
        save_state(state, tmp_path / "state")
        assert equal(load_state(tmp_path / "state"), states.detach(state))


def test_views_and_shared_memory_are_saved(tmp_path: Path) -> None:
    """An empty state's parts are one tensor of zeros, and a selected one's may be strided."""
    empty = XLSTM(3, 16).initial_state(2)
    save_state(empty, tmp_path / "state")
    assert equal(load_state(tmp_path / "state"), empty)


def test_what_is_no_state_is_not_written(tmp_path: Path) -> None:
    for wrong in ({"h": torch.zeros(1)}, [torch.zeros(1)], 3):
        with pytest.raises(ValueError, match="a state is made of named tuples of tensors"):
            save_state(wrong, tmp_path / "state")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_state_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(UserError, match="does not exist"):
        load_state(path)
    path.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="is damaged"):
        load_state(path)
    save_file({"h": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="was not written by save_state"):
        load_state(path)


@pytest.mark.parametrize(
    "tree",
    [
        "rubbish", '"text"', "3", '{"int": {"x": "tensor"}}', '{"SLSTMState": {"h": "tensor"}}',
        '{"ConvState": {"x": "tensor", "y": "tensor"}}', '{"ConvState": "tensor"}',
        '{"ConvState": {"x": "tensor"}, "SLSTMState": {}}', "[" * 100_000,
        json.dumps({"ConvState": {"z": "tensor"}}), json.dumps({"ConvState": {"x": 3}}),
    ],
)  # fmt: skip
def test_a_state_that_was_tampered_with_is_not_read(tree: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_file({"x": torch.zeros(1)}, path, {"format": "openxlstm state", "state": tree})
    with pytest.raises(UserError, match="is damaged"):
        load_state(path)


def test_a_cut_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(SLSTMCell(3, 16).initial_state(2), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="is damaged"):
        load_state(path)
