"""A stack's folder: what is written comes back."""

from pathlib import Path

import pytest
import torch

import openxlstm
from openxlstm.errors import UserError
from openxlstm.lm.stack_folder import load_stack, save_stack

CONFIG = openxlstm.StackConfig(embedding_dim=16, layers="msm", num_heads=2, bias=True)


@pytest.mark.parametrize("shard_bytes", [None, 20_000])
def test_round_trip_is_exact(shard_bytes: int | None, tmp_path: Path) -> None:
    stack = openxlstm.Stack(CONFIG)
    openxlstm.save_stack(stack, tmp_path, shard_bytes=shard_bytes)
    loaded = openxlstm.load_stack(str(tmp_path))
    assert loaded.config == CONFIG
    assert not loaded.training
    for name, tensor in stack.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    x = torch.randn(2, 5, 16)
    assert torch.equal(loaded(x)[0], stack.eval()(x)[0])
    assert (
        load_stack(tmp_path, dtype=torch.float64, mapped=False).norm.weight.dtype == torch.float64
    )


def test_broken_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a stack's folder: it has no"):
        load_stack(tmp_path)
    openxlstm.LanguageModel(openxlstm.ModelConfig(vocab_size=3)).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="not an openxlstm stack's configuration"):
        load_stack(tmp_path / "model")
    save_stack(openxlstm.Stack(CONFIG), tmp_path / "stack")
    path = tmp_path / "stack" / "config.json"
    path.write_text(path.read_text().replace('"msm"', '"mxm"'))
    with pytest.raises(UserError, match=r"config\.json: layers='mxm'"):
        load_stack(tmp_path / "stack")
    with pytest.raises(UserError, match="not an openxlstm model's configuration"):
        openxlstm.LanguageModel.from_pretrained(tmp_path / "stack")
