"""A model's folder: what is written comes back, and what is broken is said so in one line."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lm_cases import make_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from openxlstm.config import ModelConfig
from openxlstm.errors import UserError
from openxlstm.lm import weight_files as weights_module
from openxlstm.lm.config_file import read_config
from openxlstm.lm.folder import fill
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.weight_files import open_weights


@pytest.fixture
def model() -> LanguageModel:
    return make_model().float()


@pytest.fixture
def folder(model: LanguageModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Edits the tensors of a safetensors file."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def complaint(folder: Path) -> str:
    """The one line that loading a folder ends in."""
    with pytest.raises(UserError) as caught:
        LanguageModel.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_positions", [0, 6])
@pytest.mark.parametrize("tie_weights", [False, True])
def test_round_trip_is_exact(tie_weights: bool, num_positions: int, tmp_path: Path) -> None:
    saved = make_model(tie_weights=tie_weights, num_positions=num_positions, bias=True).float()
    saved.save_pretrained(tmp_path)
    loaded = LanguageModel.from_pretrained(str(tmp_path))
    assert loaded.config == saved.config
    assert not loaded.training
    assert list(loaded.state_dict()) == list(saved.state_dict())
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (loaded.head.weight is loaded.token_embedding.weight) == tie_weights
    ids = torch.randint(11, (2, 9))
    assert torch.equal(loaded(ids)[0], saved(ids)[0])


def test_round_trip_of_large_blocks(tmp_path: Path) -> None:
    model = make_model(layers="mm", block="large", bias=True)
    model.save_pretrained(tmp_path)
    loaded = LanguageModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_files(folder: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    values = json.loads((folder / "config.json").read_text())
    assert values["format"] == "openxlstm"
    assert values["model"]["layers"] == "ms"
    tied = make_model(tie_weights=True)
    tied.save_pretrained(tmp_path / "tied")
    assert "head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")


def test_saving_again_replaces(folder: Path) -> None:
    other = make_model(layers="s", vocab_size=5).float()
    other.save_pretrained(folder)
    loaded = LanguageModel.from_pretrained(folder)
    assert loaded.config == other.config
    assert torch.equal(loaded.head.weight, other.head.weight)


def overwrite(folder: Path) -> None:
    """Changes the weights' file in place, as we never do."""
    with (folder / "model.safetensors").open("rb+") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(bytes(1000))


def last(model: LanguageModel) -> Tensor:
    """A copy of the tensor that is last in the file."""
    return model.token_embedding.weight.detach().clone()


def test_what_was_copied_no_longer_needs_the_file(folder: Path) -> None:
    loaded = LanguageModel.from_pretrained(folder, mapped=False)
    before = last(loaded)
    overwrite(folder)
    assert torch.equal(last(loaded), before)
    assert last(LanguageModel.from_pretrained(folder))[-1].abs().max() == 0


def test_a_mapped_model_outlives_its_file(folder: Path) -> None:
    """What we write never changes a file that somebody has mapped: it takes its name."""
    loaded = LanguageModel.from_pretrained(folder)
    before = last(loaded)
    make_model(layers="s").float().save_pretrained(folder)
    assert torch.equal(last(loaded), before)
    loaded.save_pretrained(folder)  # over what it is mapped from, or was
    assert torch.equal(last(LanguageModel.from_pretrained(folder)), before)


def test_training_a_mapped_model_leaves_the_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    loaded = LanguageModel.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1.0)
    loaded(torch.randint(11, (2, 5)))[0].sum().backward()
    optimizer.step()
    assert not torch.equal(last(loaded), last(LanguageModel.from_pretrained(folder)))
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("mapped", [True, False])
def test_another_dtype(folder: Path, model: LanguageModel, mapped: bool) -> None:
    narrow = LanguageModel.from_pretrained(folder, dtype=torch.bfloat16, mapped=mapped)
    assert {x.dtype for x in narrow.parameters()} == {torch.bfloat16}
    assert torch.equal(narrow.head.weight, model.head.weight.bfloat16())
    narrow.save_pretrained(folder)
    kept = LanguageModel.from_pretrained(folder, mapped=mapped)
    assert kept.head.weight.dtype == torch.bfloat16
    assert torch.equal(kept.head.weight, narrow.head.weight)


def test_of_several_dtypes_the_widest_is_taken(folder: Path) -> None:
    change(
        folder / "model.safetensors",
        lambda tensors: tensors.update({"head.weight": tensors["head.weight"].bfloat16()}),
    )
    loaded = LanguageModel.from_pretrained(folder)
    assert {x.dtype for x in loaded.parameters()} == {torch.float32}


def test_several_files(model: LanguageModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, shard_bytes=4000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    loaded = LanguageModel.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.skipif(os.name != "posix", reason="permissions are posix's")
def test_permissions_follow_the_umask(model: LanguageModel, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    for path in (tmp_path / "model").iterdir():
        assert path.stat().st_mode & 0o777 == 0o640, path.name


def test_a_failed_save_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def half(tensors: dict[str, Tensor], path: Path, metadata: None) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        make_model(layers="s").save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ---- broken weights ---------------------------------------------------------------------------


def test_a_truncated_file_is_damaged(folder: Path) -> None:
    """Cut at every length near an end, and at many between: never a model, never a crash."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    lengths = {*range(12), *range(0, len(whole), 997), *range(len(whole) - 9, len(whole))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        message = complaint(folder)
        assert "model.safetensors is damaged" in message, length
    path.write_bytes(whole)
    LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**64 - 1),
        struct.pack("<Q", 2**63 - 1) + b"{}",
        struct.pack("<Q", 10**12) + b'{"x":' + bytes(100),
        struct.pack("<Q", 8) + b"not json",
        struct.pack("<Q", 10) + b'{"a": 12} ',
        struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
        b"PK\x03\x04 a zip file of torch.save",
        bytes(1000),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_a_hostile_header_is_damage(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert "is damaged or no safetensors file" in complaint(folder)


def test_a_hostile_offset_is_damage(folder: Path) -> None:
    header = json.dumps(
        {"head.weight": {"dtype": "F32", "shape": [11, 16], "data_offsets": [0, 2**40]}}
    ).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(64)
    (folder / "model.safetensors").write_bytes(content)
    assert "is damaged" in complaint(folder)


def test_a_wrong_shape_names_the_tensor(folder: Path) -> None:
    change(
        folder / "model.safetensors",
        lambda tensors: tensors.update({"stack.blocks.1.layer.bias": torch.zeros(2, 4, 9)}),
    )
    message = complaint(folder)
    assert "stack.blocks.1.layer.bias of shape (2, 4, 9); the model needs (2, 4, 8)" in message


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    change(folder / "model.safetensors", lambda tensors: tensors.update({"extra": torch.zeros(1)}))
    assert "holds extra, which the model does not have" in complaint(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    change(folder / "model.safetensors", lambda tensors: tensors.pop("stack.norm.weight"))
    assert "lacks the tensor stack.norm.weight" in complaint(folder)


def test_whole_numbers_are_no_weights(folder: Path) -> None:
    change(
        folder / "model.safetensors",
        lambda tensors: tensors.update({"head.weight": tensors["head.weight"].long()}),
    )
    assert "head.weight in int64; weights are floating-point" in complaint(folder)


def test_a_tied_model_takes_no_head(tmp_path: Path) -> None:
    make_model(tie_weights=True).save_pretrained(tmp_path)
    change(
        tmp_path / "model.safetensors",
        lambda tensors: tensors.update({"head.weight": torch.zeros(11, 16)}),
    )
    assert "holds head.weight" in complaint(tmp_path)


def test_weights_of_another_model_leave_this_one_alone(folder: Path) -> None:
    other = make_model(vocab_size=7).float()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError, match=r"head\.weight of shape"):
        fill(other, open_weights(folder), folder)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "there is no model.safetensors" in complaint(folder)


# ---- broken configurations --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 200_000, "is damaged"),
        (b"[1]", "does not hold a table"),
        (b"{}", "is not an openxlstm model's configuration"),
        (b'{"format": "openxlstm"}', "is not an openxlstm model's configuration"),
        (b'{"model_type": "gpt2", "model": {}}', "is not an openxlstm model's configuration"),
        (b'{"format": "openxlstm", "model": [1]}', "needs a table of options"),
        (b'{"format": "openxlstm", "model": {}}', "lacks 'vocab_size'"),
        (b'{"format": "openxlstm", "model": {"vocab_size": "9"}}', "vocab_size must be int"),
        (b'{"format": "openxlstm", "model": {"vocab_size": 9, "depth": 3}}', "no option 'depth'"),
        (b'{"format": "openxlstm", "model": {"vocab_size": 9, "layers": "mx"}}', "letter 'x'"),
    ],
)
def test_a_broken_config(folder: Path, content: bytes, expected: str) -> None:
    (folder / "config.json").write_bytes(content)
    message = complaint(folder)
    assert expected in message
    assert str(folder / "config.json") in message


def test_missing_folders(tmp_path: Path) -> None:
    assert "it does not exist" in complaint(tmp_path / "nowhere")
    assert "it has no config.json" in complaint(tmp_path)
    (tmp_path / "file").write_text("x")
    assert "it has no config.json" in complaint(tmp_path / "file")


def test_config_alone(folder: Path, model: LanguageModel) -> None:
    assert read_config(folder, ModelConfig) == model.config
