"""Checkpoints of the original implementations with the logits that they gave, in `data/`;
make_vectors.py made them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from openxlstm.interop import load

DATA = Path(__file__).with_name("data")
VECTORS = sorted(DATA.glob("*.safetensors"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_logits_are_those_of_the_original(path: Path, tmp_path: Path) -> None:
    """In one pass, and step by step."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    weights = {
        k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")
    }
    assert all(bool(tensor.all()) for tensor in weights.values()), "a weight is 0"
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(metadata["config"])
    assert ("model_type" in json.loads(metadata["config"])) == (metadata["kind"] == "hf")
    model = load(tmp_path)
    ids, scale = tensors["ids"], tensors["whole"].abs().max()
    with torch.no_grad():
        whole, _ = model(ids)
        steps, state = [], None
        for step in ids.split(1, dim=1):
            logits, state = model(step, state)
            steps.append(logits)
    for found in (whole, torch.cat(steps, 1)):
        for expected in (tensors["whole"], tensors["steps"]):
            assert float((found - expected).abs().max()) <= 2e-5 * scale


def test_vectors_are_there_and_small() -> None:
    assert len(VECTORS) == 5
    assert sum(path.stat().st_size for path in VECTORS) < 200_000
