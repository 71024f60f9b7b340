"""The same weights in the original implementations and here give the same logits: in one pass, step
by step, at lengths that are no multiple of any chunk; checkpoints of theirs, and those written for
them. `make peers` makes the environment that has the originals, and runs this."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openxlstm import LanguageModel, ModelConfig
from openxlstm.cli.main import run as run_command
from openxlstm.interop import load

pytestmark = pytest.mark.peers

PEER = Path(__file__).with_name("peer.py")
PYTHON = os.environ.get("OPENXLSTM_PEERS_PYTHON", ".venv-peers/bin/python")
"""What runs the originals; the environment of the tests need not have them."""
TOLERANCE = 2e-5
"""Of the largest logit."""
LENGTHS = (1, 7, 65, 131)

BLOCKS = {
    "mlstm_block": {"mlstm": {"num_heads": 4}},
    "slstm_block": {"slstm": {"num_heads": 4, "backend": "vanilla", "dtype": "float32"}},
}
PAPER = {"vocab_size": 31, "embedding_dim": 64, "context_length": 256}
LARGE = {"vocab_size": 31, "embedding_dim": 128, "num_heads": 2, "num_blocks": 2}
HF = {"vocab_size": 31, "hidden_size": 128, "num_heads": 2, "num_hidden_layers": 2}

THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "nxai-ms": ("nxai", {**PAPER, **BLOCKS, "num_blocks": 4, "slstm_at": [1, 3]}),
    "nxai-cuda-layout": (
        "nxai",
        {**PAPER, **BLOCKS, "num_blocks": 2, "slstm_at": [1], "layout": "cuda"},
    ),
    "nxai-bias": (
        "nxai",
        {
            **PAPER,
            "num_blocks": 3,
            "slstm_at": [0],
            "bias": True,
            "tie_weights": True,
            "mlstm_block": {"mlstm": {"num_heads": 2, "conv1d_kernel_size": 3}},
            "slstm_block": {
                "slstm": {"num_heads": 2, "backend": "vanilla", "conv1d_kernel_size": 0},
                "feedforward": {"proj_factor": 2.0, "bias": True},
            },
        },
    ),
    "nxai-large": ("nxai-large", LARGE),
    "nxai-large-bias": ("nxai-large", {**LARGE, "use_bias": True, "qk_dim_factor": 1.0}),
    "nxai-large-fused": ("nxai-large", {**LARGE, "weight_mode": "fused"}),
    "hf": ("hf", HF),
    "hf-own": ("hf", HF),
    "hf-own-bias": ("hf", {**HF, "use_bias": True, "ffn_proj_factor": 3.0}),
}

OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "nxai": ("nxai", {"embedding_dim": 64, "layers": "msm", "num_heads": 4, "bias": True}),
    "nxai-large": (
        "nxai",
        {"embedding_dim": 128, "layers": "mm", "num_heads": 2, "block": "large", "bias": True},
    ),
    "hf": (
        "hf",
        {
            "embedding_dim": 128,
            "layers": "mm",
            "num_heads": 2,
            "block": "large",
            "eps": 0.0,
        },
    ),
    "hf-own": (
        "hf",
        {
            "embedding_dim": 128,
            "layers": "mm",
            "num_heads": 2,
            "block": "large",
            "tie_weights": True,
            "ff_factor": 2.0,
        },
    ),
    # Its cache takes keys and values of a multiple of 64 channels alone.
    "hf-own-narrow": (
        "hf",
        {"embedding_dim": 48, "layers": "m", "num_heads": 2, "block": "large"},
    ),
}


def peer(action: str, kind: str, folder: Path, name: str, *options: str) -> dict[str, Tensor]:
    """Runs an original in a process of its own; what logits it gives."""
    hidden = ["--hide-xlstm"] if name.startswith("hf-own") else []
    done = subprocess.run(
        [PYTHON, str(PEER), action, kind, str(folder), *options, *hidden],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    if kind == "hf":
        assert json.loads(done.stdout.splitlines()[-1])["external"] == (not hidden)
    return load_file(folder / "logits.safetensors")


def compare(name: str, model: LanguageModel, expected: dict[str, Tensor]) -> None:
    """Logits of every length in one pass, and of every step, are the original's."""
    ids, scale = expected["ids"], expected["whole"].abs().max()
    with torch.no_grad():
        found = {T: model(ids[:, :T])[0] for T in LENGTHS}
        steps, state = [], None
        for step in ids.split(1, dim=1):
            logits, state = model(step, state)
            steps.append(logits)
    differences = {
        f"{side}, {T} in one pass": (found[T] - expected[side][:, :T]).abs().max() / scale
        for side in ("whole", "steps")
        for T in LENGTHS
    }
    for side in ("whole", "steps"):
        differences[f"{side}, by steps"] = (
            torch.cat(steps, 1) - expected[side]
        ).abs().max() / scale
    worst = max(differences, key=lambda key: float(differences[key]))
    print(f"{name}: logits up to {scale:.2f}, largest relative difference "
          f"{differences[worst]:.1e} ({worst})")  # fmt: skip
    assert differences[worst] <= TOLERANCE, differences


@pytest.mark.parametrize("name", THEIRS)
def test_a_checkpoint_of_theirs(name: str, tmp_path: Path) -> None:
    kind, options = THEIRS[name]
    expected = peer("make", kind, tmp_path / "theirs", name, "--options", json.dumps(options))
    (tmp_path / "theirs" / "logits.safetensors").unlink()
    compare(name, load(tmp_path / "theirs"), expected)
    assert run_command(["convert", str(tmp_path / "theirs"), "--out", str(tmp_path / "ours")]) == 0
    compare(f"{name}, converted", LanguageModel.from_pretrained(tmp_path / "ours"), expected)


@pytest.mark.parametrize("name", OURS)
def test_a_checkpoint_written_for_them(name: str, tmp_path: Path) -> None:
    to, options = OURS[name]
    torch.manual_seed(1)
    eps = "eps" if options.get("block") == "large" else "mlstm_eps"
    model = LanguageModel(ModelConfig.from_options(vocab_size=31, **{eps: 1e-6, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.add_(scale * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "ours")
    out = tmp_path / "theirs"
    assert run_command(["convert", str(tmp_path / "ours"), "--to", to, "--out", str(out)]) == 0
    kind = name if name == "nxai-large" else to
    found = peer("read", kind, out, name)
    compare(f"{name}, written", model, found)
    if kind == "hf":
        ids = found["ids"][:1, :5]
        while ids.shape[1] < found["generated"].shape[1]:
            ids = torch.cat([ids, model(ids)[0][:, -1:].argmax(-1)], 1)
        assert torch.equal(found["generated"], ids)
