"""Memory of training that never was, beside that of training that is."""

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.config import ComputeConfig, ModelConfig
from openxlstm.errors import UserError
from openxlstm.lm.memory import activation_bytes, check_memory, summarize_unbuilt, training_memory
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.presets import get_preset
from openxlstm.lm.summary import Summary, summarize
from openxlstm.ops.native import backend as native

B, T, D, V = 3, 70, 32, 11
KINDS: dict[str, dict[str, Any]] = {
    "m": {"layers": "mm"},
    "s": {"layers": "s"},
    "large": {"layers": "mm", "block": "large"},
    "all": {"layers": "ms", "dropout": 0.1, "num_positions": 5, "tie_weights": True, "bias": True},
}
kinds = pytest.mark.parametrize("kind", KINDS)
PLAIN = ComputeConfig()


def config_of(kind: str, **options: Any) -> ModelConfig:
    return ModelConfig.from_options(
        **{"vocab_size": V, "embedding_dim": D, "num_heads": 2, **KINDS[kind], **options}
    )


@kinds
def test_a_model_is_counted_without_being_built(kind: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    summary = summarize_unbuilt(config_of(kind))
    activation_bytes(config_of(kind), B, T, PLAIN)
    assert torch.equal(torch.get_rng_state(), before), "a seeded run must not notice"
    assert summary == summarize(LanguageModel(config_of(kind)))


def test_xlstm_7b_has_as_many_parameters_as_its_authors_say() -> None:
    """arXiv:2503.13427, table 4."""
    assert summarize_unbuilt(get_preset("xlstm-7b").model).num_parameters == 6_865_424_896


@pytest.mark.parametrize(
    ("num_heads", "megabytes"), [(4, 268.4), (8, 134.2), (16, 67.1), (32, 33.6)]
)
def test_the_state_of_xlstm_7b(num_heads: int, megabytes: float) -> None:
    """arXiv:2503.13427, table 3, which counts C alone; n and m are less than a percent."""
    config = get_preset("xlstm-7b").model.replace(num_heads=num_heads)
    bytes_of_n_and_m = 32 * num_heads * (config.mlstm_head_dims[0] + 1) * 4
    position = 8
    bytes_of_C = summarize_unbuilt(config).state_bytes - bytes_of_n_and_m - position
    assert bytes_of_C == pytest.approx(megabytes * 1e6, abs=5e4)


@kinds
@pytest.mark.parametrize(
    ("backend", "precision"), [("native", "float32"), ("native", "bfloat16"), ("torch", "bfloat16")]
)
def test_activations_are_what_a_real_step_keeps(
    kind: str, precision: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "torch":
        monkeypatch.setattr(native, "_MISSING", "no compiler")
    model, kept = LanguageModel(config_of(kind)), {}
    own = {parameter.data_ptr() for parameter in model.parameters()}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    ids = torch.randint(V, (B, T))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits, _ = model(ids)
        F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
    kept[logits.untyped_storage().data_ptr()] = logits
    gradient = 4 * B * T * V
    expected = gradient + sum(
        x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in own
    )
    compute = ComputeConfig.from_dict({"precision": precision})
    assert activation_bytes(config_of(kind), B, T, compute) == expected


def test_recomputed_blocks_keep_their_inputs_alone() -> None:
    again = ComputeConfig(recompute_blocks=True)
    two, three, deep = (config_of("large", layers="m" * depth) for depth in (2, 3, 12))
    one_more = activation_bytes(three, B, T, again) - activation_bytes(two, B, T, again)
    assert one_more == 4 * B * T * D
    assert activation_bytes(deep, B, T, again) < activation_bytes(deep, B, T, PLAIN) / 3


def test_by_strategy() -> None:
    """Two blocks, of 30 and 40 parameters, and 50 around them."""
    parts = {"token embedding": 20, "block 0 (mLSTM)": 30, "block 1 (sLSTM)": 40, "head": 30}
    summary = Summary(parts=parts, flops_per_token=1, state_bytes=1)
    ddp = training_memory(summary, 7, strategy="ddp", world_size=4, average=True)
    assert (ddp.weights, ddp.gradients, ddp.moments, ddp.average) == (480, 480, 960, 480)
    assert (ddp.gathered, ddp.activations, ddp.total) == (0, 7, 2407)
    fsdp = training_memory(summary, 7, strategy="fsdp", world_size=4, average=False)
    assert (fsdp.weights, fsdp.gradients, fsdp.moments, fsdp.average) == (120, 120, 240, 0)
    assert fsdp.gathered == 4 * (50 + 40 + 50)


def test_what_cannot_fit_is_refused() -> None:
    config = get_preset("xlstm-7b").model
    words = r"6,865,424,896 parameters needs at least 109\.8 GB .* there are 24\.0 GB here"
    with pytest.raises(UserError, match=words):
        check_memory(config, 24 * 10**9)
    with pytest.raises(UserError, match=r"137\.3 GB"):
        check_memory(config, 24 * 10**9, average=True)
    check_memory(config, 24 * 10**9, strategy="fsdp", world_size=8)
    check_memory(config, 110 * 10**9)
    check_memory(config, None)


STEP = """
import re, sys, torch
from pathlib import Path
import torch.nn.functional as F
from openxlstm import LanguageModel, ModelConfig

def run(model, batch_size, window):
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for _ in range(2):
        ids = torch.randint(model.config.vocab_size, (batch_size, window))
        logits, _ = model(ids)
        F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

torch.set_num_threads(1)
config = ModelConfig(vocab_size=500, embedding_dim=384, layers="mmmmmm", block=sys.argv[1])
run(LanguageModel(config.replace(embedding_dim=32, layers="m")), 1, 64)
before = peak()
run(LanguageModel(config), 8, 256)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured as Linux says it")
@pytest.mark.parametrize("block", ["paper", "large"])
def test_a_real_run_takes_what_was_planned(block: Any) -> None:
    """The growth of a process, whose allocator and temporary tensors no count knows of."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, block], capture_output=True, text=True, check=True
    )
    config = ModelConfig(vocab_size=500, embedding_dim=384, layers="mmmmmm", block=block)
    activations = activation_bytes(config, 8, 256, PLAIN)
    planned = training_memory(
        summarize_unbuilt(config), activations, strategy="ddp", world_size=1, average=False
    ).total
    assert int(done.stdout) == pytest.approx(planned, rel=0.25)
