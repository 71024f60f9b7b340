"""Measures the memory and time to load a model, compared with reading its file.

    python benchmarks/loading.py [--width 1536] [--blocks 12] [--json FILE]

A model of large blocks with random weights, by default 433 million, is written as openxlstm does
(one file and several, float32 and bfloat16) and as Hugging Face does. Each is loaded in a separate
process that has imported everything before, and reads a first token, which needs nearly all
weights. The files were just written, so they are in the system's cache. `read` is the time to read
the same file into memory, in another process.

Memory is the rise of the peak resident memory during loading, relative to the size of the weights.
The last column is the peak of the whole process, interpreter and torch included.
"""

import json as json_module
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

REPEATS = 5


def peak_bytes() -> int:
    """The highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make(folder: Path, width: int, blocks: int) -> None:
    """Writes the models."""
    import torch

    from openxlstm import LanguageModel, LargeBlockConfig, ModelConfig
    from openxlstm.interop.writing import write_checkpoint

    config = ModelConfig(
        vocab_size=32000, embedding_dim=width, layers="m" * blocks, num_heads=8,
        block=LargeBlockConfig(eps=1e-6),
    )  # fmt: skip
    model = LanguageModel(config)
    model.save_pretrained(folder / "float32")
    model.save_pretrained(folder / "float32 in several files", shard_bytes=500_000_000)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_checkpoint(folder / "float32 from Hugging Face", config, tensors, "hf")
    model.to(torch.bfloat16).save_pretrained(folder / "bfloat16")


def load_here(folder: Path, how: str) -> dict[str, float]:
    """Loads a model in this process, and reads a token."""
    import torch

    from openxlstm import LanguageModel, ModelConfig, interop

    with torch.inference_mode():  # what is only needed once
        tiny = ModelConfig(vocab_size=8, embedding_dim=64, layers="m", block="large")
        LanguageModel(tiny)(torch.zeros(1, 1, dtype=torch.long))
    before, started = peak_bytes(), time.perf_counter()
    if how == "read":
        buffers = []
        for path in sorted(folder.glob("*.safetensors")):
            buffers.append(bytearray(path.stat().st_size))
            with path.open("rb", buffering=0) as file:
                file.readinto(buffers[-1])
        return {"loaded": time.perf_counter() - started, "rise": peak_bytes() - before}
    if "Hugging Face" in folder.name:
        model = interop.load(folder)
    else:
        model = LanguageModel.from_pretrained(folder, mapped=how == "mapped")
    loaded = time.perf_counter() - started
    with torch.inference_mode():
        model(torch.zeros(1, 1, dtype=torch.long))
    return {
        "loaded": loaded,
        "token": time.perf_counter() - started,
        "rise": peak_bytes() - before,
        "peak": peak_bytes(),
        "weights": sum(x.nbytes for x in model.parameters()),
    }


def load(folder: Path, how: str) -> dict[str, float]:
    """`load_here` in fresh processes: medians."""
    found = []
    for _ in range(REPEATS):
        command = [sys.executable, __file__, "--child", how, "--folder", str(folder)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(json_module.loads(said))
    return {key: statistics.median(values[key] for values in found) for key in found[0]}


def main(
    width: int = 1536,
    blocks: int = 12,
    json: Path | None = None,
    child: Literal["make", "read", "mapped", "copied"] | None = None,
    folder: Path | None = None,
) -> None:
    """Memory and time of loading.

    Args:
        width, blocks: of the model.
        json: where to write the figures as well.
        child: for the script itself: do this in the present process.
        folder: for the script itself: where.
    """
    if child == "make" and folder is not None:
        make(folder, width, blocks)
        return
    if child is not None and folder is not None:
        print(json_module.dumps(load_here(folder, child)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        sizes = ["--width", str(width), "--blocks", str(blocks)]
        command = [sys.executable, __file__, "--child", "make", "--folder", place, *sizes]
        subprocess.run(command, check=True)
        for path in sorted(Path(place).iterdir()):
            read = load(path, "read")
            ways = ["mapped"] if "Hugging Face" in path.name else ["mapped", "copied"]
            for how in ways:
                rows.append({"model": path.name, "how": how, "read": read["loaded"]})
                rows[-1] |= load(path, how)
    table = Table("model", box=None)
    for name in ("", "GB", "read s", "loaded s", "with a token s", "memory", "process"):
        table.add_column(name, justify="right")
    for row in rows:
        weights = row["weights"]
        table.add_row(
            row["model"], row["how"], f"{weights / 1e9:.2f}", f"{row['read']:.2f}",
            f"{row['loaded']:.3f}", f"{row['token']:.2f}", f"{row['rise'] / weights:.2f}×",
            f"{row['peak'] / weights:.2f}×",
        )  # fmt: skip
    Console().print(table)
    if json is not None:
        json.write_text(json_module.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
