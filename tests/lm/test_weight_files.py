"""Weights in one file or in many: all comes back, and what is broken is said so in one line."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.lm import weight_files as weights_module
from openxlstm.lm.weight_files import INDEX, open_weights, save_weights

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


def complaint(path: Path) -> str:
    """The one line that opening ends in."""
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, header: Any, body: bytes = b"") -> None:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@given(
    shapes=st.dictionaries(
        st.text("abc.", min_size=1, max_size=5),
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from(DTYPES)),
        min_size=1,
        max_size=8,
    ),
    shard_bytes=st.one_of(st.none(), st.integers(1, 500)),
)
def test_what_is_saved_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, tuple[list[int], torch.dtype]],
    shard_bytes: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    tensors = {name: torch.randint(2, shape).to(dtype) for name, (shape, dtype) in shapes.items()}
    save_weights(folder, tensors, shard_bytes=shard_bytes)
    found = open_weights(folder)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert torch.equal(found.copy_of(name), tensor)
        assert (found.shape(name), found.dtype(name)) == (tuple(tensor.shape), tensor.dtype)
        assert found.place(name).parent == folder
    sizes = [
        sum(found[n].nbytes for n in found if found.place(n) == file)
        for file in {found.place(n) for n in found}
    ]
    largest = max(tensor.nbytes for tensor in tensors.values())
    assert shard_bytes is None or max(sizes) <= max(shard_bytes, largest)


def test_strided_tensors_are_kept(tmp_path: Path) -> None:
    tensors = {"x": torch.arange(6.0).view(2, 3).T}
    save_weights(tmp_path, tensors)
    assert torch.equal(open_weights(tmp_path)["x"], tensors["x"])


def test_saving_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    many = {f"x{n}": torch.ones(4) * n for n in range(3)}
    one = {"y": torch.ones(2)}
    save_weights(tmp_path, many, shard_bytes=16)
    assert names_in(tmp_path) == [
        *(f"model-{n:05}-of-00003.safetensors" for n in (1, 2, 3)), INDEX,
    ]  # fmt: skip
    save_weights(tmp_path, one)
    assert names_in(tmp_path) == ["model.safetensors"]
    save_weights(tmp_path, many, shard_bytes=32)
    assert len(names_in(tmp_path)) == 3
    assert set(open_weights(tmp_path)) == set(many)


def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {f"x{n}": torch.ones(4) * n for n in range(3)}
    save_weights(tmp_path, tensors, shard_bytes=16)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    count = 0

    def fails_at_the_second(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(28, "No space left on device")
        save_file(*arguments)

    monkeypatch.setattr(weights_module, "save_file", fails_at_the_second)
    with pytest.raises(OSError, match="No space"):
        save_weights(tmp_path, {name: -x for name, x in tensors.items()}, shard_bytes=16)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_numbered_files(tmp_path: Path) -> None:
    """As NX-AI's xLSTM-large has them."""
    for number in range(11):
        save_file({f"x{number}": torch.ones(1)}, tmp_path / f"model_{number}.safetensors")
    assert set(open_weights(tmp_path)) == {f"x{number}" for number in range(11)}
    (tmp_path / "model_4.safetensors").unlink()
    assert "model_4.safetensors does not exist" in complaint(tmp_path)


def test_a_tensor_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    save_weights(tmp_path, {"x": torch.ones(5), "y": torch.ones(3)})
    found = open_weights(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert torch.equal(found["x"], torch.ones(5))


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({}, "it has no weight_map"),
        ({"weight_map": {}}, "it has no weight_map"),
        ({"weight_map": ["x"]}, "it has no weight_map"),
        ({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}, "b.safetensors does not"),
        (
            {"weight_map": {"z": "a.safetensors"}},
            "places z in a.safetensors, which does not have it",
        ),
        ({"weight_map": {"x": "../a.safetensors"}}, "which is not a file beside it"),
        ({"weight_map": {"x": "/etc/passwd"}}, "which is not a file beside it"),
        ({"weight_map": {"x": ".."}}, "which is not a file beside it"),
        ({"weight_map": {"x": 3}}, "which is not a file beside it"),
    ],
    ids=str,
)
def test_a_broken_index(tmp_path: Path, index: dict[str, Any], expected: str) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert expected in complaint(tmp_path)
    assert expected in complaint(tmp_path / INDEX)


def test_a_name_in_two_files(tmp_path: Path) -> None:
    for number in range(2):
        save_file({"x": torch.ones(1)}, tmp_path / f"model_{number}.safetensors")
    assert "holds x, which model_0.safetensors holds as well" in complaint(tmp_path)


F32 = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"x": F32, "y": F32}, bytes(4)),  # offsets that overlap
        ({"x": F32, "y": {**F32, "data_offsets": [2, 6]}}, bytes(6)),
        ({"x": F32, "y": {**F32, "data_offsets": [8, 12]}}, bytes(12)),  # a hole
        ({"x": {**F32, "data_offsets": [4, 0]}}, bytes(4)),
        ({"x": {**F32, "data_offsets": [0, 4]}}, bytes(8)),  # bytes that belong to nobody
        ({"x": {**F32, "shape": [2]}}, bytes(4)),
        ({"x": {**F32, "shape": [-1]}}, bytes(4)),
        ({"x": {**F32, "shape": [2**63, 2]}}, bytes(4)),
        ({"x": {**F32, "shape": [2**62, 2**62], "data_offsets": [0, 2**63]}}, bytes(4)),
        (b'{"x": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', bytes(4)),
        (b'{"x": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}', bytes(4)),
        ({"x": {**F32, "dtype": "pickle"}}, bytes(4)),
        ({"x": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        ([1, 2], b""),
        (b"[" * 100_000, b""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_hostile_header_is_damage(tmp_path: Path, header: Any, body: bytes) -> None:
    write(tmp_path / "model.safetensors", header, body)
    assert "is damaged or no safetensors file" in complaint(tmp_path)


def test_numbers_of_a_kind_that_is_not_read(tmp_path: Path) -> None:
    write(
        tmp_path / "model.safetensors", {"x": {**F32, "dtype": "F8_E4M3", "shape": [4]}}, bytes(4)
    )
    assert "has x of type F8_E4M3, which is not supported" in complaint(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    assert complaint(tmp_path / "model").endswith("model does not exist")
    assert "has no weights" in complaint(tmp_path)


def test_lazy_tensors_are_made_one_file_at_a_time(tmp_path: Path) -> None:
    """A conversion of seven billion weights never holds more than a file of them."""
    alive: list[int] = []

    class Lazy(dict[str, int]):
        def __getitem__(self, name: str) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            alive.append(super().__getitem__(name))
            return torch.full((4,), float(super().__getitem__(name)))

        def items(self) -> Any:
            return ((name, self[name]) for name in self)

    save_weights(tmp_path, Lazy({f"x{n}": n for n in range(4)}), shard_bytes=32)  # pyright: ignore[reportArgumentType]
    found = open_weights(tmp_path)
    assert [float(found[f"x{n}"][0]) for n in range(4)] == [0, 1, 2, 3]
    assert alive == [0, 1, 2, 3] * 2  # once for its size, once for its file
