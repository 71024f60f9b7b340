"""Opening checkpoints of others: which kind they are, and what is wrong with them in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from interop_cases import LARGE, PAPER, assert_same, edit, random_model, weights_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from openxlstm.config import ModelConfig, StackConfig
from openxlstm.errors import UserError
from openxlstm.interop import load, load_nxai_stack
from openxlstm.interop.opening import format_of, open_foreign
from openxlstm.interop.writing import write_checkpoint
from openxlstm.lm.model import LanguageModel

EMBEDDING = "token_embedding.weight"


def complaint(path: Path, kind: Any = "nxai", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_foreign(path, kind, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- models -----------------------------------------------------------------------------------


def test_formats_are_told_apart(
    nxai: Path, nxai_large: Path, hugging_face: Path, tmp_path: Path
) -> None:
    assert [format_of(path) for path in (nxai, nxai_large, hugging_face)] == ["nxai", "nxai", "hf"]
    assert format_of(nxai / "model.safetensors") == "nxai"
    LanguageModel(ModelConfig.from_options(**PAPER)).save_pretrained(tmp_path / "ours")
    assert format_of(tmp_path / "ours") == "openxlstm"
    values = yaml.safe_load((nxai / "config.yaml").read_text())
    (nxai / "config.yaml").unlink()
    assert format_of(nxai) == "nxai"  # weights alone
    (nxai / "config.json").write_text(json.dumps(values))
    assert format_of(nxai) == "nxai"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has no config.json, config.yaml or weights"),
        ({"model_type": "gpt2"}, "holds a model of the type 'gpt2', not xlstm"),
    ],
)
def test_no_checkpoint(content: Any, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=says):
        format_of(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        format_of(tmp_path / "nowhere")


def test_load(nxai: Path, nxai_large: Path, hugging_face: Path, tmp_path: Path) -> None:
    for path, options in ((nxai, PAPER), (nxai_large, LARGE), (hugging_face, LARGE)):
        expected = random_model(ModelConfig.from_options(**options))
        model = load(path)
        assert not model.training
        assert model.config == expected.config
        assert_same(weights_of(model), weights_of(expected))
        model.save_pretrained(tmp_path / f"{path.name}-ours")
        assert_same(weights_of(load(tmp_path / f"{path.name}-ours")), weights_of(expected))
        assert {p.dtype for p in load(path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_weights_are_mapped_or_copied(hugging_face: Path) -> None:
    """A copy is the model's own; what is mapped can be changed without changing the file."""
    before = (hugging_face / "model.safetensors").read_bytes()
    for mapped in (True, False):
        model = load(hugging_face, mapped=mapped)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    assert (hugging_face / "model.safetensors").read_bytes() == before


def test_a_file_with_its_configuration_elsewhere(nxai: Path, tmp_path: Path) -> None:
    tensors = {f"model.{k}": v for k, v in load_file(nxai / "model.safetensors").items()}
    torch.save({"state_dict": tensors}, tmp_path / "last.ckpt")
    assert "give the configuration with --config" in complaint(tmp_path / "last.ckpt")
    opened = open_foreign(tmp_path / "last.ckpt", "nxai", config=nxai / "config.yaml")
    assert_same(opened.tensors, weights_of(random_model(ModelConfig.from_options(**PAPER))))


def test_a_training_run_s_configuration(nxai: Path) -> None:
    values = yaml.safe_load((nxai / "config.yaml").read_text())
    (nxai / "config.yaml").write_text(yaml.safe_dump({"training": {"lr": 1}, "model": values}))
    assert open_foreign(nxai, "nxai").config == ModelConfig.from_options(**PAPER)


def test_numbered_files(nxai_large: Path) -> None:
    """As NX-AI's code writes large models."""
    tensors = load_file(nxai_large / "model.safetensors")
    (nxai_large / "model.safetensors").unlink()
    for number in range(2):
        part = dict(list(tensors.items())[number::2])
        save_file(part, nxai_large / f"model_{number}.safetensors")
    assert_same(
        weights_of(load(nxai_large)), weights_of(random_model(ModelConfig.from_options(**LARGE)))
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_stack_alone(wrapped: bool, tmp_path: Path) -> None:
    config = StackConfig.from_options(
        **{k: v for k, v in PAPER.items() if k != "vocab_size"}, bias=True
    )
    stack = random_model(config)
    write_checkpoint(tmp_path / "stack", config, weights_of(stack), "nxai")
    if wrapped:
        tensors = load_file(tmp_path / "stack" / "model.safetensors")
        edit(tmp_path / "stack", lambda found: found.clear())
        named = {f"encoder.xlstm_block_stack.{name}": tensor for name, tensor in tensors.items()}
        edit(tmp_path / "stack", lambda found: found.update(named))
    found = load_nxai_stack(tmp_path / "stack")
    assert found.config == config
    assert_same(weights_of(found), weights_of(stack))
    x = torch.randn(2, 5, 16)
    assert torch.equal(found(x)[0], stack(x)[0])
    with pytest.raises(UserError, match="is a stack of blocks, not a language model"):
        load(tmp_path / "stack")


def test_a_model_is_no_stack(nxai: Path) -> None:
    with pytest.raises(UserError, match="is a language model"):
        load_nxai_stack(nxai)


def test_a_mask_is_no_weight(nxai: Path) -> None:
    name = "xlstm_block_stack.blocks.0.xlstm.mlstm_cell.causal_mask"
    edit(nxai, lambda tensors: tensors.update({name: torch.ones(4, 4, dtype=torch.bool)}))
    assert_same(
        load(nxai).state_dict(), random_model(ModelConfig.from_options(**PAPER)).state_dict()
    )


def test_a_tied_head_must_be_the_embedding(tmp_path: Path) -> None:
    config = ModelConfig.from_options(**PAPER, tie_weights=True)
    write_checkpoint(tmp_path, config, weights_of(random_model(config)), "nxai")
    assert torch.equal(load_file(tmp_path / "model.safetensors")["lm_head.weight"],
                       load_file(tmp_path / "model.safetensors")[EMBEDDING])  # fmt: skip
    assert load(tmp_path).config == config
    edit(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    assert_same(load(tmp_path).state_dict(), random_model(config).state_dict())
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(11, 16)}))
    assert "has a lm_head.weight that differs from token_embedding.weight" in complaint(tmp_path)


# ---- what is wrong ----------------------------------------------------------------------------


RECURRENT = "xlstm_block_stack.blocks.1.xlstm.slstm_cell._recurrent_kernel_"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.pop("xlstm_block_stack.blocks.0.xlstm.learnable_skip"),
            "lacks the tensor xlstm_block_stack.blocks.0.xlstm.learnable_skip of shape (64,)",
        ),
        (
            lambda t: t.update({EMBEDDING: torch.zeros(12, 16)}),
            "has token_embedding.weight of shape (12, 16); the configuration needs (11, 16)",
        ),
        (
            lambda t: t.update({EMBEDDING: torch.zeros(11, 16, dtype=torch.int32)}),
            "has token_embedding.weight of type int32; weights are floating-point numbers",
        ),
        (
            lambda t: t.update({RECURRENT: torch.zeros(2, 8, 8)}),
            f"{RECURRENT} has the shape (2, 8, 8); "
            "the configuration needs (2, 32, 8) or (2, 8, 32)",
        ),
        (
            lambda t: t.update({"extra.weight": torch.ones(1), "extra.bias": torch.ones(1)}),
            "holds extra.bias and 1 more, which the model does not have; --allow-unknown",
        ),
        (
            lambda t: t.pop("xlstm_block_stack.blocks.1.xlstm.zgate.weight"),
            "lacks the tensor xlstm_block_stack.blocks.1.xlstm.zgate.weight of shape (2, 8, 8)",
        ),
        (lambda t: t.clear(), "holds no xLSTM of NX-AI"),
    ],
)
def test_tensors_that_do_not_fit(
    change: Callable[[dict[str, Tensor]], object], says: str, nxai: Path
) -> None:
    edit(nxai, change)
    message = complaint(nxai)
    assert says in message
    assert str(nxai) in message or RECURRENT in message


def test_unknown_tensors_can_be_allowed(nxai: Path) -> None:
    edit(nxai, lambda tensors: tensors.update({"extra": torch.ones(1)}))
    opened = open_foreign(nxai, "nxai", allow_unknown=True)
    assert opened.notes == ["extra, which the model does not have, was skipped"]
    assert_same(opened.tensors, weights_of(random_model(ModelConfig.from_options(**PAPER))))


def test_a_missing_bias_is_not_zero(tmp_path: Path) -> None:
    """Unless the configuration says that there is none."""
    config = ModelConfig.from_options(**PAPER, bias=True)
    write_checkpoint(tmp_path, config, weights_of(random_model(config)), "nxai")
    name = "xlstm_block_stack.blocks.1.ffn.proj_up.bias"
    edit(tmp_path, lambda tensors: tensors.pop(name))
    assert f"lacks the tensor {name}" in complaint(tmp_path)


def test_hugging_face_has_no_bias_in_its_last_norm(tmp_path: Path) -> None:
    config = ModelConfig.from_options(**LARGE, bias=True)
    tensors = weights_of(random_model(config))
    with pytest.raises(UserError, match=r"stack\.norm\.bias is not 0 and has no counterpart"):
        write_checkpoint(tmp_path / "a", config, tensors, "hf")
    tensors["stack.norm.bias"].zero_()
    write_checkpoint(tmp_path / "b", config, tensors, "hf")
    assert "backbone.out_norm.bias" not in load_file(tmp_path / "b" / "model.safetensors")
    assert_same(open_foreign(tmp_path / "b", "hf").tensors, tensors)


def test_the_wrong_format(nxai: Path, hugging_face: Path) -> None:
    (nxai / "config.json").write_text("{}")
    assert "holds no xLSTM of Hugging Face" in complaint(nxai, "hf")
    assert "lacks the option hidden_size" not in complaint(hugging_face, "nxai")
    with pytest.raises(ValueError, match="kind must be nxai or hf"):
        open_foreign(nxai, "openxlstm")


@pytest.mark.parametrize("content", ["- 1", "a: [", "\0", "!!python/object/apply:os.getcwd []"])
def test_a_broken_configuration(content: str, nxai: Path) -> None:
    (nxai / "config.yaml").write_text(content)
    assert "config.yaml is damaged" in complaint(nxai)


def test_a_damaged_file(nxai: Path) -> None:
    path = nxai / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "model.safetensors is damaged" in complaint(nxai)
