"""`openxlstm convert`: a model from one format into another, whole or not at all."""

import argparse
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import cli, tree
from interop_cases import LARGE, PAPER, assert_same, edit, random_model, weights_of
from safetensors.torch import load_file

import openxlstm
from openxlstm.config import ModelConfig, StackConfig
from openxlstm.interop.opening import open_foreign
from openxlstm.interop.writing import write_checkpoint
from openxlstm.lm import weight_files as weights_module
from openxlstm.runs.run import open_run


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_folder_of_its_own(checkpoint: Any, trained: Path, tmp_path: Path) -> None:
    before, out = tree(trained), tmp_path / "model"
    result = cli("convert", trained, "--checkpoint", checkpoint, "--out", out)
    assert (result.code, result.out) == (0, "")
    assert set(tree(out)) == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    expected = open_run(trained, checkpoint=checkpoint).model
    model = openxlstm.LanguageModel.from_pretrained(out)
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in result.err
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert cli("generate", out, "--max-tokens", 3, "--seed", 0).code == 0
    assert tree(trained) == before


def test_quiet(trained: Path, tmp_path: Path) -> None:
    result = cli("convert", trained, "--out", tmp_path / "model", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_a_folder_in_use(trained: Path) -> None:
    before = tree(trained)
    result = cli("convert", trained, "--out", trained)
    assert (result.code, result.out) == (2, "")
    assert "is in use: choose another --out" in result.err
    assert tree(trained) == before
    assert cli("convert", trained.parent / "nowhere", "--out", trained.parent / "x").code == 2


# ---- other formats ----------------------------------------------------------------------------


def write(folder: Path, kind: Any, **options: Any) -> Path:
    """A model in a format."""
    config = ModelConfig.from_options(
        **{**(LARGE if kind == "hf" else PAPER), "vocab_size": 300, **options}
    )
    write_checkpoint(folder, config, weights_of(random_model(config)), kind)
    return folder


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return weights_of(openxlstm.LanguageModel.from_pretrained(folder))


def read(folder: Path, kind: Any) -> dict[str, torch.Tensor]:
    return dict(open_foreign(folder, kind).tensors)


@pytest.mark.parametrize(("to", "options"), [("nxai", PAPER), ("nxai", LARGE), ("hf", LARGE)])
@pytest.mark.parametrize("named", [True, False])
def test_there_and_back(to: str, options: dict[str, Any], named: bool, tmp_path: Path) -> None:
    model = random_model(ModelConfig.from_options(**options))
    assert isinstance(model, openxlstm.LanguageModel)
    model.save_pretrained(tmp_path / "ours")
    before = tree(tmp_path / "ours")
    result = cli("convert", tmp_path / "ours", "--to", to, "--out", tmp_path / "theirs")
    assert (result.code, result.out) == (0, "")
    assert "parameters, " in result.err
    assert "there is no tokenizer" in result.err
    source = ("--from", to) if named else ()
    assert cli("convert", tmp_path / "theirs", *source, "--out", tmp_path / "again").code == 0
    assert tree(tmp_path / "ours") == before
    assert_same(loaded(tmp_path / "again"), weights_of(model))
    found = openxlstm.LanguageModel.from_pretrained(tmp_path / "again").config
    assert found == model.config
    assert {path.name for path in tmp_path.iterdir()} == {"ours", "theirs", "again", "work"}


def test_a_run_for_transformers(trained: Path, tmp_path: Path) -> None:
    """A model of the paper's blocks stays in our own format, for which there is openxlstm.hf."""
    result = cli("convert", trained, "--to", "hf", "--out", tmp_path / "out")
    assert result.code == 0
    assert "after `import openxlstm.hf`" in result.err
    assert_same(loaded(tmp_path / "out"), loaded(trained))
    assert "tokenizer.json" in tree(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(dtype: str, tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "hf")
    result = cli("convert", source, "--out", tmp_path / "out", "--dtype", dtype)
    assert result.err.rstrip().endswith(f"openxlstm, {dtype}")
    wanted = getattr(torch, dtype)
    expected = {name: tensor.to(wanted) for name, tensor in read(source, "hf").items()}
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), expected)
    assert cli("convert", tmp_path / "out", "--to", "hf", "--out", tmp_path / "back").code == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == dtype


def test_several_types_become_the_widest(tmp_path: Path) -> None:
    source, name = write(tmp_path / "nxai", "nxai"), "token_embedding.weight"
    edit(source, lambda tensors: tensors.update({name: tensors[name].bfloat16()}))
    result = cli("convert", source, "--out", tmp_path / "out")
    assert "the weights have several types; all are converted to float32" in result.err
    found = loaded(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found[name], load_file(source / "model.safetensors")[name].float())


@pytest.mark.parametrize("to", ["openxlstm", "hf"])
def test_shards(to: str, tmp_path: Path) -> None:
    source, out = write(tmp_path / "hf", "hf"), tmp_path / "out"
    assert cli("convert", source, "--to", to, "--out", out, "--shard-size", "20KB").code == 0
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    assert cli("convert", out, "--to", "hf", "--out", tmp_path / "again").code == 0
    assert_same(read(tmp_path / "again", "hf"), read(source, "hf"))


def test_a_stack_alone(tmp_path: Path) -> None:
    config = StackConfig.from_options(**{k: v for k, v in PAPER.items() if k != "vocab_size"})
    openxlstm.save_stack(random_model(config), tmp_path / "ours")  # pyright: ignore
    assert cli("convert", tmp_path / "ours", "--to", "nxai", "--out", tmp_path / "theirs").code == 0
    result = cli("convert", tmp_path / "theirs", "--out", tmp_path / "again")
    assert "no tokenizer" not in result.err
    again, ours = (openxlstm.load_stack(tmp_path / name) for name in ("again", "ours"))
    assert again.config == config
    assert_same(weights_of(again), weights_of(ours))
    wrong = cli("convert", tmp_path / "ours", "--to", "hf", "--out", tmp_path / "hf")
    assert (wrong.code, "a stack alone has no counterpart" in wrong.err) == (2, True)


def test_numbers_that_are_not_finite_are_told(tmp_path: Path) -> None:
    source = write(tmp_path / "nxai", "nxai")
    edit(source, lambda tensors: tensors["token_embedding.weight"][0].fill_(torch.nan))
    result = cli("convert", source, "--out", tmp_path / "out")
    assert result.code == 0
    assert "token_embedding.weight has values that are not finite" in result.err
    assert bool(loaded(tmp_path / "out")["token_embedding.weight"][0].isnan().all())


# ---- tokenizers -------------------------------------------------------------------------------


def test_a_tokenizer_is_kept(tmp_path: Path) -> None:
    """With what stands beside it, both ways, byte for byte if it is not ours."""
    source = write(tmp_path / "hf", "hf")
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {f"w{i}": i for i in range(300)},
            "unk_token": "w0",
        },
    }  # fmt: skip
    beside = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"tokenizer_class": "X"},
        "special_tokens_map.json": {"eos_token": "w1"},
        "generation_config.json": {"eos_token_id": 1, "bos_token_id": 0},
    }
    for name, values in beside.items():
        (source / name).write_text(json.dumps(values))
    assert "no tokenizer" not in cli("convert", source, "--out", tmp_path / "ours").err
    assert cli("convert", tmp_path / "ours", "--to", "hf", "--out", tmp_path / "back").code == 0
    for folder in (tmp_path / "ours", tmp_path / "back"):
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            assert (folder / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [0, 1, None]
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": 1, "bos_token_id": 0, "use_cache": False}
    assert cli("generate", tmp_path / "ours", "--prompt", "w1", "--max-tokens", 2).code == 0


def test_a_tokenizer_by_name(trained: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "nxai", "nxai")
    expected = openxlstm.load_tokenizer(trained).to_json()
    for place, out in ((trained, "a"), (trained / "tokenizer.json", "b")):
        folder = tmp_path / out
        assert cli("convert", source, "--out", folder, "--tokenizer", place).code == 0
        assert openxlstm.load_tokenizer(folder).to_json() == expected
    small = write(tmp_path / "small", "nxai", vocab_size=3)
    result = cli("convert", small, "--out", tmp_path / "c", "--tokenizer", trained)
    assert (result.code, "that the model was trained with" in result.err) == (2, True)
    assert cli("convert", source, "--out", tmp_path / "d", "--tokenizer", tmp_path).code == 2


# ---- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--shard-size", "many"), "--shard-size must be a size such as 5GB or 500MB, not 'many'"),
        (("--shard-size", "0GB"), "--shard-size must be a size"),
        (("--to", "nxai", "--shard-size", "1GB"), "reads a single file of weights"),
        (("--from", "openxlstm"), "is not an openxlstm model's configuration"),
        (("--from", "nxai"), "options that openxlstm does not know"),
        (("--config", "nowhere.json"), "nowhere.json does not exist"),
        (("--checkpoint", "last"), "--checkpoint is about the runs of openxlstm"),
        (("--to", "onnx"), "--to"),
    ],
)
def test_a_wrong_call(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "hf")
    before = tree(source)
    result = cli("convert", source, "--out", tmp_path / "out", *arguments)
    assert (result.code, result.out) == (2, "")
    assert says in result.err
    assert result.err.count("\n") == 1
    assert tree(source) == before
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "work"}


def test_a_folder_inside_the_source(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "hf")
    before = tree(source)
    result = cli("convert", source, "--out", source / "new" / "folder")
    assert (result.code, "which is only read" in result.err) == (2, True)
    assert tree(source) == before


def long_header(content: bytes) -> bytes:
    return struct.pack("<Q", 2**62) + content[8:]


def overlapping(content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    first, second, *_ = (entry for name, entry in header.items() if name != "__metadata__")
    second["data_offsets"] = first["data_offsets"]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def huge(content: bytes) -> bytes:
    text = b'{"x":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}'
    return struct.pack("<Q", len(text)) + text + bytes(8)


HOSTILE = [long_header, overlapping, huge, lambda content: content[:-7], lambda content: b""]


@pytest.mark.parametrize("damage", HOSTILE, ids=["length", "overlap", "huge", "short", "empty"])
@pytest.mark.parametrize("kind", ["nxai", "hf"])
def test_hostile_files(kind: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """One line, and nothing is left of what was begun."""
    source = write(tmp_path / "source", kind)
    path = source / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    before = tree(source)
    result = cli("convert", source, "--out", tmp_path / "out")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "model.safetensors" in result.err
    assert tree(source) == before
    assert {path.name for path in tmp_path.iterdir()} == {"source", "work"}


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "options": argparse.Namespace()}, tmp_path / "x.ckpt")
    result = cli("convert", tmp_path / "x.ckpt", "--out", tmp_path / "out")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "cannot be read without running code" in result.err


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "hf", "hf")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module, "save_file", full)
    result = cli("convert", source, "--out", tmp_path / "deep" / "out")
    assert (result.code, "No space left on device" in result.err) == (2, True)
    assert not list((tmp_path / "deep").iterdir())


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "hf")
    (tmp_path / "out").mkdir()
    assert cli("convert", source, "--out", tmp_path / "out").code == 0
    openxlstm.LanguageModel.from_pretrained(tmp_path / "out")
