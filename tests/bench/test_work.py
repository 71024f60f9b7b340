"""Counts of arithmetic and traffic, against sums done by hand and against torch's own counter."""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from openxlstm.bench.limits import Work
from openxlstm.bench.work import generation_work, mlstm_work, slstm_work, training_work
from openxlstm.config import ModelConfig
from openxlstm.lm.cost import flops_per_token
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.summary import summarize

CONFIG = ModelConfig(vocab_size=10, embedding_dim=64, layers="ms", num_heads=4)


def test_mlstm_by_hand() -> None:
    flops = 3 * 64 * (2 + 3) + 12 * 2 * 3
    numbers = 2 * (2 + 2 + 3 + 1 + 1) + 3 + 3  # q, k, v, i, f and gradients; h; its gradient
    assert mlstm_work(1, 1, 1, 2, 3) == Work(flops, 4 * numbers) == Work(1032, 96)
    assert mlstm_work(5, 7, 11, 2, 3) == Work(5 * 7 * 11 * 1032, 5 * 7 * 11 * 96)


def test_slstm_by_hand() -> None:
    a_step = 2 * 4 * 2 + 2 + 2  # x and its gradient; h; its gradient
    once = 2 * (4 * 2 * 2 + 4 * 2)  # recurrent weight, bias, and their gradients
    assert slstm_work(1, 1, 1, 2) == Work(24 * 4, 4 * (a_step + once))
    assert slstm_work(3, 5, 7, 2).flops == 3 * 5 * 7 * 96
    assert slstm_work(3, 5, 7, 2).bytes == 4 * (3 * 5 * 7 * a_step + 7 * once)


def test_slstm_as_torch_counts_it() -> None:
    """The products of a plain scan, forward and backward."""
    B, T, NH, DH = 2, 3, 4, 8
    weight = torch.randn(NH, DH, 4 * DH, requires_grad=True)
    h = torch.randn(NH, B, DH, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        state = h
        for _ in range(T):
            gates = torch.bmm(state, weight).view(NH, B, 4, DH)
            state = gates.tanh().sum(2)
        state.sum().backward()
    assert slstm_work(B, T, NH, DH).flops == counter.get_total_flops()


def test_mlstm_as_torch_counts_it() -> None:
    """The products of one chunk, half of those within it, forward and backward."""
    NH, L, DQK, DHV = 2, 64, 16, 32
    q, k = (torch.randn(NH, L, DQK, requires_grad=True) for _ in range(2))
    v = torch.randn(NH, L, DHV, requires_grad=True)
    memory = torch.randn(NH, DQK, DHV, requires_grad=True)

    def flops(within: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            if within:
                h = torch.bmm(torch.bmm(q, k.transpose(1, 2)), v)
            else:
                h = torch.bmm(q, memory).sum() + torch.bmm(k.transpose(1, 2), v).sum()
            h.sum().backward()
        return counter.get_total_flops()

    expected = flops(within=True) // 2 + flops(within=False)
    assert mlstm_work(1, NH, L, DQK, DHV).flops == expected


def test_training_by_hand() -> None:
    forward = 151_296  # tests/lm/test_summary.py adds it up
    decay = 2 * 4 * 32 * 32
    chunk = 4 * 64 * (32 + 32)
    assert training_work(CONFIG, 1000, 7) == Work(3 * 7 * (forward - decay + chunk), 1000 * 4 * 6)
    only_s = CONFIG.replace(layers="ss")
    assert training_work(only_s, 1000, 7).flops == 3 * 7 * flops_per_token(only_s)


def test_training_counts_an_op_as_the_op_is_counted() -> None:
    """All that a second mLSTM adds, without what is around its memory, is the op."""
    two, three = CONFIG.replace(layers="mm"), CONFIG.replace(layers="mmm")
    added = training_work(three, 0, 1).flops - training_work(two, 0, 1).flops
    around = 64 * 256 + 128 * 4 + 3 * 128 * 4 + 2 * 4 * 384 + 128 * 64
    assert added == 3 * 2 * around + mlstm_work(1, 4, 1, 32, 32).flops


def test_generation_by_hand() -> None:
    model = LanguageModel(CONFIG)
    summary = summarize(model)
    work = generation_work(CONFIG, summary.num_parameters, summary.state_bytes, 9)
    read: list[Tensor] = [p for name, p in model.named_parameters() if "embedding" not in name]
    assert len(read) == len(list(model.parameters())) - 1
    a_token = 4 * (sum(p.numel() for p in read) + 64) + 2 * summary.state_bytes
    assert work == Work(9 * 151_296, 9 * a_token)


@pytest.mark.parametrize("layers", ["m", "s", "msm"])
def test_training_is_more_than_generation(layers: str) -> None:
    config = CONFIG.replace(layers=layers)
    assert training_work(config, 0, 1).flops > 2 * generation_work(config, 0, 0, 1).flops
