"""Makes the files in `data/` with the original implementations:

    .venv-peers/bin/python tests/interop/make_vectors.py

Each is a checkpoint of theirs, small and with random weights, as one safetensors file: its tensors
below `weights.`, `ids` (B, T), the logits in one pass `whole` and by steps `steps` (B, T, V); its
configuration and kind are in the metadata. `make peers` makes the environment.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
import peer

DATA = Path(__file__).with_name("data")
PAPER: dict[str, Any] = {
    "vocab_size": 11,
    "embedding_dim": 16,
    "context_length": 128,
    "num_blocks": 2,
    "slstm_at": [1],
    "mlstm_block": {"mlstm": {"num_heads": 2}},
    "slstm_block": {"slstm": {"num_heads": 2, "backend": "vanilla", "dtype": "float32"}},
}
LARGE: dict[str, Any] = {
    "vocab_size": 11, "embedding_dim": 16, "num_heads": 2, "num_blocks": 1, "use_bias": True,
}  # fmt: skip
HF: dict[str, Any] = {
    "vocab_size": 11, "hidden_size": 16, "num_heads": 2, "num_hidden_layers": 1,
}  # fmt: skip
VECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "nxai": ("nxai", {**PAPER, "bias": True}),
    "nxai_cuda_layout": ("nxai", {**PAPER, "layout": "cuda"}),
    "nxai_large": ("nxai-large", LARGE),
    "nxai_large_fused": ("nxai-large", {**LARGE, "weight_mode": "fused"}),
    "hugging_face": ("hf", HF),
}


def main() -> None:
    peer.hide_xlstm()
    DATA.mkdir(exist_ok=True)
    for name, (kind, options) in VECTORS.items():
        make, _, run = peer.KINDS[kind]
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            place = Path(folder)
            model = make(place, options)
            ids = torch.randint(11, (1, 71))
            whole, steps = run(model, ids)
            if (place / "config.yaml").exists():
                config = yaml.safe_load((place / "config.yaml").read_text())
            else:
                config = json.loads((place / "config.json").read_text())
            weights = {
                f"weights.{key}": tensor
                for file in place.glob("*.safetensors")
                for key, tensor in load_file(file).items()
            }
        tensors = {**weights, "ids": ids, "whole": whole, "steps": steps.clone()}
        metadata = {"kind": kind, "config": json.dumps(config)}
        save_file(tensors, DATA / f"{name}.safetensors", metadata)


if __name__ == "__main__":
    main()
