"""One folder, two libraries: what the one writes the other opens, bit for bit."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from openxlstm.config import LargeBlockConfig, ModelConfig
from openxlstm.errors import UserError
from openxlstm.hf import OpenXLSTMConfig, OpenXLSTMForCausalLM, OpenXLSTMModel
from openxlstm.lm.config_file import read_config
from openxlstm.lm.model import LanguageModel

MakeModel = Callable[..., OpenXLSTMForCausalLM]
IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("shard_bytes", [None, 8000])
def test_ours_opens_in_transformers(
    shard_bytes: int | None, language: LanguageModel, tmp_path: Path
) -> None:
    language.save_pretrained(tmp_path, shard_bytes=shard_bytes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(model, OpenXLSTMForCausalLM)
    assert not model.training
    assert torch.equal(model(IDS).logits, language(IDS)[0])
    weights = language.state_dict()
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    tied = language.config.tie_weights
    assert (model.head.weight is model.token_embedding.weight) == tied
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, OpenXLSTMModel)
    assert not any(name.startswith("head") for name in base.state_dict())
    hidden = base(IDS).last_hidden_state
    assert torch.equal(hidden, model(IDS, output_hidden_states=True).hidden_states[-1])


@torch.no_grad()
@pytest.mark.parametrize("max_shard_size", ["50GB", "8KB"])
def test_theirs_opens_here(
    max_shard_size: str, model: OpenXLSTMForCausalLM, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert ("model.safetensors" in {file.name for file in tmp_path.iterdir()}) == (
        max_shard_size == "50GB"
    )
    stored = {name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    assert ("head.weight" in stored) != model.config.tie_word_embeddings
    language = LanguageModel.from_pretrained(tmp_path)
    assert language.config == model.config.model_config
    assert torch.equal(language(IDS)[0], model(IDS).logits)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@torch.no_grad()
def test_bfloat16(model: OpenXLSTMForCausalLM, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    small = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
    output = small(IDS)
    is_capped = model.config.model_config.logit_soft_cap != 0
    assert output.logits.dtype == (torch.float32 if is_capped else torch.bfloat16)
    cells = [block.cell for block in output.past_key_values.state.stack.blocks]
    assert {part.dtype for cell in cells for part in cell} == {torch.float32}
    error = output.logits.float() - model(IDS).logits
    assert error.norm() < 0.05 * model(IDS).logits.norm()
    small.save_pretrained(tmp_path / "small")
    assert json.loads((tmp_path / "small" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "small").dtype == torch.bfloat16


def test_a_folder_without_a_head(make_model: MakeModel, tmp_path: Path) -> None:
    """What it lacks is as in a new model, and the rest as it was."""
    model = make_model()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    base.save_pretrained(tmp_path / "base")
    found: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    kept = "stack.norm.weight"
    assert torch.equal(found.state_dict()[kept], model.state_dict()[kept])
    assert found.head.weight.std().item() == pytest.approx((2 / 5 / 16) ** 0.5, rel=0.3)


def test_what_is_missing_is_as_in_a_new_model(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    tensors = dict(model.state_dict())
    for name in ("stack.blocks.0.layer.gate_bias", "stack.blocks.1.ff_norm.weight"):
        del tensors[name]
    model.save_pretrained(tmp_path, state_dict=tensors)
    found: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert found.stack.blocks[0].layer.gate_bias[1].tolist() == [3, 6]
    assert torch.equal(found.stack.blocks[1].ff_norm.weight, torch.zeros(16))  # 1 is added
    kept = "stack.blocks.1.layer.bias"
    assert torch.equal(found.state_dict()[kept], model.state_dict()[kept])


def test_a_new_model_begins_as_ours() -> None:
    config = OpenXLSTMConfig(vocab_size=11, embedding_dim=16, layers="ms")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(1)
    language = LanguageModel(ModelConfig(vocab_size=11, embedding_dim=16, layers="ms"))
    for name, tensor in language.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


# ---- configuration ----------------------------------------------------------------------------


def test_configuration(tmp_path: Path) -> None:
    config = OpenXLSTMConfig(vocab_size=9, embedding_dim=32, layers="msm", tie_weights=True)
    assert config.model_config == ModelConfig(
        vocab_size=9, embedding_dim=32, layers="msm", tie_weights=True
    )
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    assert [getattr(config, name) for name in names] == [9, 32, 3, 4]
    assert config.tie_word_embeddings
    assert [config.to_dict()[name] for name in names] == [9, 32, 3, 4]
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
    assert OpenXLSTMConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert read_config(tmp_path, ModelConfig) == config.model_config
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))
    for read in (AutoConfig.from_pretrained, lambda folder: read_config(folder, ModelConfig)):
        with pytest.raises(UserError, match="hidden_size=64 contradicts"):
            read(tmp_path)


def test_options_of_a_block() -> None:
    config = OpenXLSTMConfig(vocab_size=9, layers="m", block="large", qk_dim_factor=1.0)
    assert config.model_config.block == LargeBlockConfig(qk_dim_factor=1.0)
    flat = {"vocab_size": 9, "layers": "m", "block": "large", "large_qk_dim_factor": 1.0}
    assert OpenXLSTMConfig(model=flat).model == config.model, "as old files have it"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocab_size": 9, "embeding_dim": 32}, "has no option 'embeding_dim'"),
        ({"embedding_dim": 32}, "lacks 'vocab_size'"),
        ({"vocab_size": 9, "layers": "mx"}, "unknown letter 'x'"),
        ({"vocab_size": 9, "layers": 3}, "layers must be str"),
        ({"model": {"vocab_size": 9, "depth": 3}}, "no option 'depth'"),
        ({"model": {"vocab_size": 9}, "format": "other"}, "format is 'other'"),
        ({"model": {"vocab_size": 9}, "format_version": 3}, "format_version is 3"),
        ({"model": {"vocab_size": 9}, "layers": "m"}, "layers='m' contradicts"),
    ],
)
def test_a_configuration_that_makes_no_sense(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        OpenXLSTMConfig(**options)


# ---- without transformers ---------------------------------------------------------------------


def test_without_transformers() -> None:
    code = "import sys; sys.modules['transformers'] = None; import openxlstm.hf"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: openxlstm.hf needs the package transformers" in found.stderr
    assert found.stderr.endswith("pip install 'openxlstm[hf]'\n")
