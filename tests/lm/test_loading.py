"""What a model takes in memory while it is loaded: its weights once, and little beside them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from openxlstm.config import ModelConfig
from openxlstm.lm.memory import summarize_unbuilt

MAKE = """
import sys, torch
from openxlstm import LanguageModel, ModelConfig
model = LanguageModel(ModelConfig.from_dict({config}))
model.to(torch.{dtype}).save_pretrained(sys.argv[1], shard_bytes=500_000_000)
"""
LOAD = """
import json, re, sys, torch
from pathlib import Path
from openxlstm import LanguageModel, ModelConfig
ids = torch.zeros(1, 1, dtype=torch.long)
def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
with torch.inference_mode():
    tiny = ModelConfig(vocab_size=8, embedding_dim=64, layers="m", block="large")
    LanguageModel(tiny)(ids)
    before = peak()
    model = LanguageModel.from_pretrained(sys.argv[1], mapped={mapped}, dtype={dtype})
    model(ids)
    print(json.dumps([peak() - before, sum(x.nbytes for x in model.parameters())]))
"""


def run(code: str, folder: Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured as Linux says it")
@pytest.mark.parametrize(
    ("stored", "dtype", "mapped"),
    [
        ("float32", None, True),
        ("float32", None, False),
        ("bfloat16", None, True),
        ("float32", "torch.bfloat16", True),
    ],
)
def test_weights_are_in_memory_once(
    stored: str, dtype: str | None, mapped: bool, tmp_path: Path
) -> None:
    """400 million of them."""
    config = ModelConfig(
        vocab_size=32000, embedding_dim=1536, layers="m" * 11, block="large", num_heads=8
    )
    assert summarize_unbuilt(config).num_parameters > 400_000_000
    run(MAKE.format(config=config.to_dict(), dtype=stored), tmp_path)
    rise, weights = json.loads(run(LOAD.format(mapped=mapped, dtype=dtype), tmp_path))
    assert rise <= 1.15 * weights
