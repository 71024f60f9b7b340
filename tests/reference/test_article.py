"""Mistakes of the article "Understanding xLSTM through code implementation", absent here.

Where it makes the point, the article's line is computed beside ours, to show what differs.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from openxlstm.config import ModelConfig
from openxlstm.data.batches import RandomWindows
from openxlstm.data.corpora import split
from openxlstm.data.tokens import Tokens
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.presets import get_preset
from openxlstm.ops import mlstm, slstm
from openxlstm.states import MLSTMState
from openxlstm.train.loop import fit
from openxlstm.train.schedule import learning_rate


def open_gates(T: int, NH: int = 1, B: int = 1) -> tuple[Tensor, Tensor]:
    """i = f = 1 at every step."""
    zeros = torch.zeros(B, NH, T, dtype=torch.float64)
    return zeros, zeros.clone()


def heads(values: list[list[float]]) -> Tensor:
    """The rows as the steps of one head of one sample."""
    return torch.tensor(values, dtype=torch.float64)[None, None]


def small_model(num_positions: int = 0) -> LanguageModel:
    config = ModelConfig(
        vocab_size=11, embedding_dim=16, layers="ms", num_heads=2, num_positions=num_positions
    )
    model = LanguageModel(config).double()
    for parameter in model.parameters():  # no weight is left at 0, where it would hide a path
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


class TestKeyScaling:
    """The article divides the key by 1/√d: its scores are d times too large."""

    @pytest.mark.parametrize("d", [1, 4, 64])
    def test_score_is_q_k_over_the_root_of_d(self, d: int):
        k = torch.randn(1, 1, 1, d, dtype=torch.float64)
        q = 0.5 * k / k.square().sum()  # q·k = 1/2, so that the normalizer stays at 1
        h, _ = mlstm(q, k, torch.ones(1, 1, 1, 1, dtype=torch.float64), *open_gates(1))
        assert h.item() == pytest.approx(0.5 / math.sqrt(d))

    def test_longer_keys_cancel_once_the_normalizer_is_past_one(self):
        q, k, v = torch.randn(3, 1, 2, 6, 8, dtype=torch.float64)
        q, k = 5 * q.abs(), 5 * k.abs()  # all scores are positive and large
        gates = open_gates(6, NH=2)
        h, _ = mlstm(q, k, v, *gates)
        h_longer, _ = mlstm(q, 3 * k, v, *gates)
        assert_close(h_longer, h)


class TestMatrixMemory:
    """The article's memory is the vector i·v·k; the paper's is the outer product."""

    def test_recalls_each_of_two_values_by_its_key(self):
        root = math.sqrt(4)  # undoes the scale of q
        keys = heads([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
        values = heads([[0.3, -2, 5, 0.7], [1, 0.25, -4, 8], [0, 0, 0, 0], [0, 0, 0, 0]])
        queries = heads([[0, 0, 0, 0], [0, 0, 0, 0], [root, 0, 0, 0], [0, root, 0, 0]])
        h, state = mlstm(queries, keys, values, *open_gates(4))
        assert state.C.shape == (1, 1, 4, 4)
        assert_close(h[0, 0, 2:], values[0, 0, :2], tolerance=1e-15)

        vector = (values * keys).sum(2)  # the article's C: one number of each value is left
        assert_close(vector[0, 0], torch.tensor([0.3, 0.25, 0, 0], dtype=torch.float64))

    def test_keys_and_values_may_differ_in_width(self):
        _, state = mlstm(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 5),
                         torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))  # fmt: skip
        assert state.C.shape == (1, 1, 3, 5)


class TestNormalizer:
    """The article divides by max|n·q| over the whole tensor, not by max(|nᵀq|, 1)."""

    def test_is_that_of_one_head_and_sample_and_step(self):
        q, k, v = torch.randn(3, 2, 2, 4, 3, dtype=torch.float64)
        q, gates = 0.1 * q, open_gates(4, NH=2, B=2)
        h, _ = mlstm(q, k, v, *gates)
        louder = q.clone()
        louder[1, 0, 2] *= 100  # one head of one sample at one step
        h_louder, _ = mlstm(louder, k, v, *gates)
        changed = (h_louder - h).abs().amax(-1) > 1e-12
        expected = torch.zeros(2, 2, 4, dtype=torch.bool)
        expected[1, 0, 2] = True
        assert torch.equal(changed, expected)

    def test_is_a_sum_over_the_key_and_at_least_one(self):
        k, v = heads([[1, 1, 1, 1]]), heads([[1.0]])
        for length, h_expected in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (3.0, 1.0)):
            h, _ = mlstm(length * k, k, v, *open_gates(1))  # qᵀk/√d = 2·length
            assert h.item() == pytest.approx(h_expected)


class TestStabilizer:
    """exp overflows in the article after a few steps; with m it never does."""

    i_preact, f_preact, T = 3.0, 2.0, 100

    def test_the_article_overflows(self):
        n = torch.zeros(())
        for _ in range(self.T):
            n = math.exp(self.f_preact) * n + math.exp(self.i_preact)
        assert n.isinf()

    def test_mlstm(self):
        q, k, v = torch.randn(3, 1, 1, self.T, 4)
        gate = torch.ones(1, 1, self.T)
        h, state = mlstm(q, k, v, self.i_preact * gate, self.f_preact * gate)
        assert all(part.isfinite().all() for part in (h, *state))

    def test_slstm(self):
        x = torch.randn(1, self.T, 1, 4, 3)
        x[:, :, :, 0], x[:, :, :, 1] = self.i_preact, self.f_preact
        h, state = slstm(x, torch.randn(1, 4, 3, 3), forget_gate="exp")
        assert all(part.isfinite().all() for part in (h, *state))
        assert h.abs().max() <= 1


class TestTime:
    """The article's state is not rolled inside a sequence, and is cut between calls."""

    @pytest.fixture
    def ids(self) -> Tensor:
        return torch.randint(11, (3, 12))

    def test_each_step_changes_the_state(self, ids: Tensor):
        model = small_model()
        _, state = model(ids)
        _, shorter = model(ids[:, :-1])
        for block, block_shorter in zip(state.stack.blocks, shorter.stack.blocks, strict=True):
            for part, part_shorter in zip(block.cell, block_shorter.cell, strict=True):
                assert not torch.equal(part, part_shorter)

    @pytest.mark.parametrize("layers", ["m", "s"])
    def test_last_output_learns_from_the_first_input(self, layers: str):
        """Through the cell alone: the convolution reaches back 3 steps, not 11."""
        model = small_model()
        x = torch.randn(1, 12, 16, dtype=torch.float64, requires_grad=True)
        layer = model.stack.blocks["ms".index(layers)].layer
        y, _ = layer(x)  # pyright: ignore[reportCallIssue]
        (gradient,) = torch.autograd.grad(y[:, -1].square().sum(), x)
        assert gradient.abs().amax((0, 2)).min() > 1e-9  # every step has a part in it

    def test_gradient_passes_from_call_to_call_until_it_is_detached(self):
        q, k, v = (torch.randn(1, 1, 3, 4, requires_grad=True) for _ in range(3))
        gate = torch.zeros(1, 1, 3)
        _, state = mlstm(q, k, v, gate, gate)
        h, _ = mlstm(q.detach(), k.detach(), v.detach(), gate, gate, state)
        assert torch.autograd.grad(h.sum(), v)[0].abs().min() > 0
        h, _ = mlstm(q.detach(), k.detach(), v.detach(), gate, gate, state.detach())
        assert not h.requires_grad

    def test_output_does_not_depend_on_later_characters(self, ids: Tensor):
        model = small_model()
        other = ids.clone()
        other[:, 7:] = (other[:, 7:] + 1) % 11
        logits, logits_other = model(ids)[0], model(other)[0]
        assert_close(logits_other[:, :7], logits[:, :7], tolerance=1e-14)
        assert (logits_other[:, 7:] - logits[:, 7:]).abs().amax(-1).min() > 1e-6

    def test_output_does_not_depend_on_other_samples(self, ids: Tensor):
        model = small_model()
        logits, _ = model(ids)
        for sample in range(3):
            alone, _ = model(ids[sample : sample + 1])
            assert_close(alone, logits[sample : sample + 1], tolerance=1e-12)

    def test_state_has_one_row_a_sample(self, ids: Tensor):
        """The author's repository averages states over the batch."""
        _, state = small_model()(ids)
        memory = state.stack.blocks[0].cell
        assert isinstance(memory, MLSTMState)
        assert memory.C.shape[0] == 3
        assert not torch.equal(memory.C[0], memory.C[1])


def test_first_tenth_is_what_is_held_out():
    """As the article does, and not as its comment says."""
    assert get_preset("article").data.val_split == "first"
    train, val = split("0123456789" * 2, val_fraction=0.1, val_split="first")
    assert val == "01"
    assert train == "23456789" + "0123456789"


class TestScheduler:
    """The article makes a cosine schedule and never steps it."""

    train = get_preset("article").train

    def test_rate_falls_from_3e_4_to_1e_5_in_300_steps(self):
        steps = self.train.steps
        assert steps is not None
        rates = [learning_rate(self.train, step, step / steps) for step in range(301)]
        assert rates[0] == pytest.approx(3e-4)
        assert rates[150] == pytest.approx((3e-4 + 1e-5) / 2)
        assert rates[300] == pytest.approx(1e-5)
        assert all(late < early for early, late in pairwise(rates))

    def test_it_is_that_of_the_optimizer_it_names(self):
        """torch's CosineAnnealingLR, past its T_max too."""
        steps = self.train.steps
        assert steps is not None
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=3e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300, eta_min=1e-5)
        for step in range(700):
            expected = optimizer.param_groups[0]["lr"]
            rate = learning_rate(self.train, step, step / steps)
            assert rate == pytest.approx(expected, rel=1e-6)
            optimizer.step()
            scheduler.step()

    def test_training_steps_it(self):
        """What counts is the rate that the optimizer itself has at each of its steps."""
        rates: list[set[float]] = []

        def hear(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            rates.append({group["lr"] for group in optimizer.param_groups})

        config = self.train.replace(steps=4, eval_every=10)
        batches = RandomWindows(Tokens(torch.arange(40) % 11), batch_size=2, window=4)
        sample = [next(batches)]
        handle = register_optimizer_step_pre_hook(hear)
        try:
            fit(small_model(), batches, config, train_sample=sample, val_sample=sample)
        finally:
            handle.remove()
        assert rates == [{learning_rate(config, step, step / 4)} for step in range(4)]
        assert len(set.union(*rates)) == 4


class TestPositions:
    """The article's position table ends what can be generated at block_size."""

    def test_sequence_may_be_longer_than_the_table(self):
        ids = torch.randint(11, (2, 10))
        logits, state = small_model(num_positions=4)(ids)
        assert logits.shape == (2, 10, 11)
        assert logits.isfinite().all()
        assert state.position.tolist() == [10, 10]

    def test_stepping_past_the_table_equals_the_whole(self):
        model, ids = small_model(num_positions=4), torch.randint(11, (2, 10))
        whole, _ = model(ids)
        state, steps = None, []
        for t in range(10):
            logits, state = model(ids[:, t : t + 1], state)
            steps.append(logits)
        assert_close(torch.cat(steps, dim=1), whole)

    def test_every_row_is_used(self):
        model = small_model(num_positions=4)
        logits, _ = model(torch.zeros(1, 10, dtype=torch.long))
        assert model.position_embedding is not None
        (gradient,) = torch.autograd.grad(logits.square().sum(), model.position_embedding.weight)
        assert gradient.abs().amax(1).min() > 0
