"""Files of `torch.save` and of safetensors: tensors come out, and no code is run."""

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from interop_cases import assert_same
from safetensors.torch import save_file
from torch import Tensor, nn

from openxlstm.errors import UserError
from openxlstm.interop.tensor_files import below_prefix, open_checkpoint

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
RAN = "this code was run"


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return Path.write_text, (self.place, RAN)


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        OrderedDict,
        lambda tensors: {"state_dict": tensors, "epoch": 3, "optimizer": {"state": {}}},
        lambda tensors: {"model_state_dict": tensors, "loss": torch.ones(())},
        lambda tensors: {"model": {"state_dict": tensors}, "config": {"D": 4}},
    ],
    ids=["dict", "ordered", "state_dict", "model_state_dict", "twice"],
)
def test_files_of_torch(wrap: Any, zipped: bool, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(TENSORS), path, _use_new_zipfile_serialization=zipped)
    assert_same(open_checkpoint(path), TENSORS)
    assert_same(open_checkpoint(tmp_path), TENSORS)


def test_parameters(tmp_path: Path) -> None:
    torch.save({name: nn.Parameter(tensor) for name, tensor in TENSORS.items()}, tmp_path / "x.pt")
    assert_same(open_checkpoint(tmp_path / "x.pt"), TENSORS)


def test_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "any.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "optimizer.pt")
    assert_same(open_checkpoint(tmp_path / "any.safetensors"), TENSORS)
    (tmp_path / "any.safetensors").rename(tmp_path / "model.safetensors")
    assert_same(open_checkpoint(tmp_path), TENSORS)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(zipped: bool, tmp_path: Path) -> None:
    place, path = tmp_path / "ran", tmp_path / "x.pt"
    values = {**TENSORS, "hostile": Hostile(place)}
    torch.save(values, path, _use_new_zipfile_serialization=zipped)
    assert "cannot be read without running code in it" in complaint(path)
    path.write_bytes(pickle.dumps(Hostile(place)))
    assert str(path) in complaint(path)
    torch.save({"state_dict": TENSORS, "hyper_parameters": argparse.Namespace(lr=1)}, path)
    assert "without running code" in complaint(path)
    assert not place.exists()
    pickle.loads(pickle.dumps(Hostile(place)))  # it would have
    assert place.read_text() == RAN


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (TENSORS["b"], "holds a Tensor, not a state_dict"),
        ([TENSORS], "holds a list, not a state_dict"),
        ({}, "holds no tensors"),
        ({"epoch": 3}, "holds 'epoch', a int: save tensors only"),
        ({0: torch.ones(1)}, "holds 0, a Tensor: save tensors only"),
        ({"a": torch.ones(1).to_sparse()}, "holds a, which is not a dense tensor"),
        ({"state_dict": TENSORS, "model": TENSORS}, "several state_dicts, state_dict, model"),
    ],
)
def test_no_state_dict(values: Any, says: str, tmp_path: Path) -> None:
    torch.save(values, tmp_path / "x.pt")
    assert says in complaint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04K\x01.", b"{}" * 99]
)
def test_damaged_files(content: bytes, tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        assert "damaged" in complaint(path) or "state_dict" in complaint(path)


def test_truncated_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save(TENSORS, path)
    whole = path.read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in complaint(path)


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in complaint(tmp_path / "x.pt")
    assert "has no weights" in complaint(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    assert "is not a .safetensors file or one of .pt" in complaint(tmp_path / "x.txt")
    for name in ("a.pt", "b.pt"):
        torch.save(TENSORS, tmp_path / name)
    assert "several checkpoints: give one of a.pt, b.pt" in complaint(tmp_path)


def prefixed(*prefixes: str) -> dict[str, Tensor]:
    return {p + name: tensor for p in prefixes for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.", "net.language_model."])
def test_prefixes(prefix: str) -> None:
    assert_same(below_prefix(prefixed(prefix), "a.weight", Path("x")), TENSORS)


def test_what_is_not_below_the_prefix_keeps_its_name() -> None:
    tensors = {**prefixed("model."), "loss.a": torch.ones(1)}
    assert set(below_prefix(tensors, "a.weight", Path("x"))) == {*TENSORS, "loss.a"}
    assert set(below_prefix({"extra.weight": torch.ones(1)}, "a.weight", Path())) == {
        "extra.weight"
    }


def test_several_models() -> None:
    with pytest.raises(UserError, match=r"several models, below 'ema\.' and 'model\.'"):
        below_prefix(prefixed("model.", "ema."), "a.weight", Path("x"))
