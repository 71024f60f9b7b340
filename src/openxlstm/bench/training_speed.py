"""Compares a training step of whole language models with other implementations.

One repetition is forward, cross entropy, backward and AdamW (torch's, the same for all) on a fixed
batch of random tokens, 16 sequences of 256, vocabulary 65. The models have width 128, 4 blocks and
4 heads:
    openxlstm         LanguageModel with layers mmmm, ssss, msmm, and with 4 large blocks
    NX-AI             package xlstm, xLSTMLMModel with the same blocks; sLSTM backend "vanilla"
    Hugging Face      xLSTMForCausalLM, 4 large blocks
    nn.LSTM           embedding, 3 layers of width 256, head, compared with ssss
Models that are compared must have the same number of parameters, or nothing is timed. nn.LSTM is an
exception and has more.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openxlstm.bench import peers
from openxlstm.bench.comparison import Comparison, Entry, Verdict
from openxlstm.bench.goals import find_goal
from openxlstm.bench.peers import Absent
from openxlstm.bench.work import training_work
from openxlstm.config import ModelConfig
from openxlstm.lm.model import LanguageModel

VOCAB, B, T, WIDTH, HEADS = 65, 16, 256, 128, 4
LSTM_WIDTH, LSTM_LAYERS = 256, 3
STACKS = ("mmmm", "ssss", "msmm")
BLOCKS = 4
LARGE, HUGGING_FACE = f"openxlstm {BLOCKS} × large", f"Hugging Face {BLOCKS} × large"


class LSTMModel(nn.Module):
    """Embedding, layers of nn.LSTM, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, LSTM_WIDTH)
        self.rnn = nn.LSTM(LSTM_WIDTH, LSTM_WIDTH, num_layers=LSTM_LAYERS, batch_first=True)
        self.head = nn.Linear(LSTM_WIDTH, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(ids))[0])


def comparisons(quick: bool) -> list[tuple[str, Callable[[], Comparison]]]:
    """The title and the constructor of each comparison."""
    return [("training step", training)]


def training() -> Comparison:
    """The comparison of all models."""
    models: dict[str, nn.Module | Absent] = {}
    for layers in STACKS:
        models[f"openxlstm {layers}"] = openxlstm_model(layers)
        models[f"NX-AI {layers}"] = peers.find(
            "xlstm", lambda layers=layers: peers.nxai_model(layers, VOCAB, WIDTH, HEADS, T)
        )
        if layers == "ssss":
            models[f"nn.LSTM {LSTM_LAYERS} × {LSTM_WIDTH}"] = LSTMModel()
    models[LARGE] = large_model(WIDTH)
    models[HUGGING_FACE] = peers.find(
        "transformers", lambda: peers.hugging_face_model(BLOCKS, VOCAB, WIDTH, HEADS, "train")
    )
    repetitions = {
        name: training_step(model)
        for name, model in models.items()
        if not isinstance(model, Absent)
    }
    return Comparison(
        part="training",
        name="training",
        sizes={"B": B, "T": T, "vocabulary": VOCAB},
        tokens=B * T,
        entries=tuple(training_entry(name, model) for name, model in models.items()),
        repetitions=repetitions,
        check=lambda: check_losses(
            models, {name: repetition() for name, repetition in repetitions.items()}
        ),
    )


def openxlstm_model(layers: str, width: int = WIDTH, **options: Any) -> LanguageModel:
    config = ModelConfig.from_options(
        vocab_size=VOCAB, embedding_dim=width, layers=layers, num_heads=HEADS, **options
    )
    return LanguageModel(config)


def large_model(width: int) -> LanguageModel:
    """A model with as many large blocks and parameters as Hugging Face's."""
    return openxlstm_model("m" * BLOCKS, width, block="large", eps=1e-6)


def training_entry(name: str, model: nn.Module | Absent) -> Entry:
    """The entry of a model."""
    if isinstance(model, LanguageModel):
        work = training_work(model.config, size(model), B * T)
        return Entry(name=name, ours=True, parameters=size(model), work=work)
    who, what = name.split()[:2]
    stack = what if who == "NX-AI" else "ssss"
    return Entry(
        name=name,
        beside=LARGE if name == HUGGING_FACE else f"openxlstm {stack}",
        parameters=None if isinstance(model, Absent) else size(model),
        absent=model.why if isinstance(model, Absent) else None,
        goal=find_goal("training", name),
    )


def training_step(model: nn.Module) -> Callable[[], float]:
    """A function that does one step on a fixed batch and returns the loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(VOCAB, (B, T + 1), generator=torch.Generator().manual_seed(0))

    def step() -> float:
        logits = logits_of(model(ids[:, :-1]))
        loss = F.cross_entropy(logits.reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, (logits, state) or Hugging Face's output."""
    if isinstance(output, Tensor):
        return output
    return output[0] if type(output) is tuple else output.logits


def check_losses(models: Mapping[str, nn.Module | Absent], losses: Mapping[str, float]) -> Verdict:
    """Whether all losses are finite, and compared models have the same size."""
    wrong = [f"{name}: loss {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
    pairs = [(f"openxlstm {layers}", f"NX-AI {layers}") for layers in STACKS]
    for mine, theirs in [*pairs, (LARGE, HUGGING_FACE)]:
        here, there = models[mine], models[theirs]
        assert not isinstance(here, Absent)
        if not isinstance(there, Absent) and size(here) != size(there):
            wrong.append(f"{mine}: {size(here)} parameters, {size(there)} in {theirs}")
    return Verdict(not wrong, "; ".join(wrong) or "losses finite, pairs of one size")


def size(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())
