"""The figures of a model, against counting and against sums done by hand."""

from itertools import product

import pytest
import torch
from lm_cases import make_model

from openxlstm import states
from openxlstm.config import ModelConfig
from openxlstm.lm.cost import flops_per_token
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.summary import summarize

CONFIG = ModelConfig(vocab_size=10, embedding_dim=64, layers="ms", num_heads=4)


@pytest.mark.parametrize(
    ("layers", "tie_weights", "num_positions"), list(product(["m", "ssm"], [False, True], [0, 9]))
)
def test_counts_add_up(layers: str, tie_weights: bool, num_positions: int) -> None:
    model = make_model(layers=layers, tie_weights=tie_weights, num_positions=num_positions)
    summary = summarize(model)
    assert summary.num_parameters == sum(p.numel() for p in model.parameters())
    assert summary.parts["head"] == (0 if tie_weights else 11 * 16)
    assert summary.state_bytes == states.state_bytes(model.initial_state(1))


def test_parts_by_hand() -> None:
    D, E, F, V, NH = 64, 128, 128, 10, 4
    mlstm = D + 2 * E * D + 5 * E + 3 * 4 * E + 2 * NH * 3 * E + 2 * NH + E + E + E * D
    slstm = D + 5 * D + 2 * 4 * D * D // NH + 4 * D + D + D + 3 * D * F
    summary = summarize(LanguageModel(CONFIG))
    assert summary.parts == {
        "token embedding": V * D,
        "block 0 (mLSTM)": mlstm,
        "block 1 (sLSTM)": slstm,
        "norm": D,
        "head": V * D,
    }
    assert next(iter(summary.parts)) == "token embedding"
    assert list(summary.parts)[-1] == "head"


def test_flops_by_hand() -> None:
    mlstm = (
        64 * 256  # up
        + 128 * 4  # convolution
        + 3 * 128 * 4  # q, k, v in blocks of 4 × 4
        + 2 * 4 * 384  # gates of 4 heads from [q; k; v]
        + 3 * 4 * 32 * 32  # each head's memory: decayed, written and read
        + 128 * 64  # down
    )
    slstm = (
        64 * 4  # convolution
        + 4 * 4 * 16 * 16  # 4 gates of 4 heads from the input
        + 4 * 4 * 16 * 16  # and from the state
        + 64 * 256 + 128 * 64  # feed-forward
    )  # fmt: skip
    head = 64 * 10
    assert flops_per_token(CONFIG) == 2 * (mlstm + slstm + head) == 151_296
    assert summarize(LanguageModel(CONFIG)).flops_per_token == 151_296


def test_parts_left_out_cost_nothing() -> None:
    bare = CONFIG.replace(
        mlstm_conv_kernel_size=0, slstm_conv_kernel_size=0, slstm_ff_factor=0.0, vocab_size=1
    )
    saved = 128 * 4 + 64 * 4 + 3 * 64 * 128 + 9 * 64
    assert flops_per_token(CONFIG) - flops_per_token(bare) == 2 * saved


def test_state_bytes_by_hand() -> None:
    mlstm = 3 * 128 + 4 * 32 * 32 + 4 * 32 + 4  # convolution, C, n, m
    slstm = 3 * 64 + 4 * 64  # convolution; h, c, n, m
    position = 8
    assert summarize(LanguageModel(CONFIG)).state_bytes == 4 * (mlstm + slstm) + position


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_bytes_follow_the_dtype(dtype: torch.dtype) -> None:
    model = LanguageModel(CONFIG).to(dtype)
    assert summarize(model).state_bytes == states.state_bytes(model.initial_state(1))


def test_a_summary_changes_nothing() -> None:
    model = LanguageModel(CONFIG)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    summarize(model)
    assert torch.equal(torch.get_rng_state(), before), "a seeded run must not notice"


def test_table() -> None:
    lines = str(summarize(LanguageModel(CONFIG.replace(tie_weights=True)))).splitlines()
    assert len({len(line) for line in lines}) == 1, "the columns line up"
    assert lines[-2].split() == ["FLOPs", "per", "token", "151,296"]
    assert lines[4].split() == ["head", "0"]
