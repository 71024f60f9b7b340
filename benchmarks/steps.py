"""Times whole language models beside their peers: a training step, and generation.

    python benchmarks/steps.py [--quick] [--part training|generation] [--json FILE]

Training: forward, cross entropy, backward and AdamW (torch's, the same for all) on one fixed batch
of random tokens, 16 sequences of 256, vocabulary 65; tokens a second is 16 · 256 over the median
turn. The models are 128 wide with 4 blocks and 4 heads:
    openxlstm         LanguageModel with layers mmmm, ssss, msmm
    NX-AI             package `xlstm`, xLSTMLMModel with the same blocks; sLSTM backend "vanilla"
    Hugging Face      xLSTMForCausalLM, the large block (mLSTM only), use_cache=False; it runs on
                      NX-AI's package where that is installed
    nn.LSTM           embedding, 3 layers of width 256, head
A pair of openxlstm and NX-AI must have the same number of parameters, or is not timed.

Generation: one stream, greedy. A turn reads one token and then produces TOKENS more, each from the
one before: openxlstm through its engine, NX-AI's through `step`.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from timing import Timing, alternate, environment, installed, measure_limits, write_json
from torch import Tensor, nn

import openxlstm
from openxlstm.generation.engine import stream_tokens
from openxlstm.generation.sampling import Sampling

VOCAB, B, T, WIDTH, HEADS = 65, 16, 256, 128, 4
STACKS = ("mmmm", "ssss", "msmm")
TOKENS = 128
"""Tokens of one turn of generation."""


class LSTMModel(nn.Module):
    """Embedding, 3 layers of nn.LSTM of width 256, head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, 256)
        self.rnn = nn.LSTM(256, 256, num_layers=3, batch_first=True)
        self.head = nn.Linear(256, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(ids))[0])


def ours(layers: str) -> nn.Module:
    return openxlstm.LanguageModel(
        openxlstm.ModelConfig(vocab_size=VOCAB, embedding_dim=WIDTH, layers=layers, num_heads=HEADS)
    )


def nxai(layers: str) -> nn.Module:
    from xlstm import (  # pyright: ignore[reportMissingImports]
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMLMModel,
        xLSTMLMModelConfig,
    )

    slstm = sLSTMLayerConfig(num_heads=HEADS, backend="vanilla", dtype="float32")
    config = xLSTMLMModelConfig(
        vocab_size=VOCAB,
        context_length=T,
        num_blocks=len(layers),
        embedding_dim=WIDTH,
        slstm_at=[place for place, kind in enumerate(layers) if kind == "s"],
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=HEADS)),
        slstm_block=sLSTMBlockConfig(
            slstm=slstm, feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu")
        ),
    )
    model = xLSTMLMModel(config)
    model.reset_parameters()
    return model


def hugging_face() -> nn.Module:
    from transformers import (  # pyright: ignore[reportMissingImports]
        xLSTMConfig,
        xLSTMForCausalLM,
    )

    config = xLSTMConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_heads=HEADS,
        mode="train",
        use_cache=False,
    )
    return xLSTMForCausalLM(config)


def training_models() -> dict[str, nn.Module | None]:
    """Every model by name, in the order of the table; None for one that is not installed."""
    models: dict[str, nn.Module | None] = {}
    for layers in STACKS:
        models[f"openxlstm {layers}"] = ours(layers)
        models[f"NX-AI {layers}"] = nxai(layers) if installed("xlstm") else None
    models["Hugging Face, large block"] = hugging_face() if installed("transformers") else None
    models["nn.LSTM 3 × 256"] = LSTMModel()
    return models


def training_step(model: nn.Module) -> Callable[[], float]:
    """A turn: one step on a fixed batch; returns the loss."""
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
    """The logits in what a model returns: a tensor, (logits, state) or Hugging Face's output."""
    if isinstance(output, Tensor):
        return output
    return output[0] if type(output) is tuple else output.logits


def check_training(models: dict[str, nn.Module | None], losses: dict[str, float]) -> list[str]:
    """What is wrong with the models to be compared, one line each."""
    wrong = [f"{name}: loss {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
    for layers in STACKS:
        mine, theirs = models[f"openxlstm {layers}"], models[f"NX-AI {layers}"]
        if theirs is not None and size(mine) != size(theirs):
            wrong.append(f"{layers}: {size(mine)} parameters here, {size(theirs)} in NX-AI's")
    return wrong


def size(model: nn.Module | None) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters()) if model is not None else 0


def generate_ours(model: Any) -> list[int]:
    prompt, sampling = [0], Sampling(temperature=0.0)
    return list(stream_tokens(model, prompt, max_tokens=TOKENS, sampling=sampling))


def generate_nxai(model: Any) -> list[int]:
    tokens: list[int] = []
    ids, state = torch.zeros(1, 1, dtype=torch.long), None
    with torch.inference_mode():
        for _ in range(TOKENS):
            logits, state = model.step(ids, state=state)
            ids = logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
    return tokens


def generation_runs() -> dict[str, tuple[nn.Module, Callable[[], object]] | None]:
    """Model and turn by name, in the order of the table; None for one that is not installed."""
    runs: dict[str, tuple[nn.Module, Callable[[], object]] | None] = {}
    for layers in STACKS:
        model = ours(layers).eval()
        runs[f"openxlstm {layers}"] = (model, partial(generate_ours, model))
        runs[f"NX-AI {layers}"] = None
        if installed("xlstm"):
            peer = nxai(layers).eval()
            runs[f"NX-AI {layers}"] = (peer, partial(generate_nxai, peer))
    return runs


def report(
    console: Console,
    title: str,
    models: dict[str, nn.Module | None],
    timings: dict[str, Timing],
    tokens: int,
) -> list[dict[str, Any]]:
    """Prints one table, and returns it for JSON."""
    table = Table(title=title)
    table.add_column("model", no_wrap=True)
    for column in ("parameters", "ms a turn (lowest–highest)", "turns", "tokens/s", "time / ours"):
        table.add_column(column, justify="right", no_wrap=True)
    results: list[dict[str, Any]] = []
    for name, model in models.items():
        if model is None:
            table.add_row(name, "[dim]not installed")
            continue
        timing = timings[name]
        rate = tokens / timing.median
        mine = timings.get(f"openxlstm {name.split()[-1]}", timing)
        ratio = "" if mine is timing else f"{timing.median / mine.median:.1f}"
        turns = str(len(timing.seconds))
        table.add_row(name, f"{size(model):,}", timing.in_ms(), turns, f"{rate:,.0f}", ratio)
        results.append(
            {"model": name, "parameters": size(model), "tokens_per_s": rate, **timing.to_dict()}
        )
    console.print(table)
    return results


def main(
    quick: bool = False,
    part: Literal["training", "generation", "both"] = "both",
    budget: float = 120.0,
    threads: int = 2,
    json: Path | None = None,
) -> int:
    """Times training steps and generation beside the peers.

    Args:
        quick: a short budget, one turn at least: shows that everything runs.
        part: which of the two.
        budget: seconds of timing a table, shared equally; the slow ones take 3 turns at least.
        threads: threads of every contender.
        json: a file for the results.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    console = Console(width=max(Console().width, 110))
    limits = measure_limits()
    where = environment()
    console.print(f"{where['processor']}, {threads} threads, torch {where['torch']}")
    budget, fewest = (5.0, 1) if quick else (budget, 3)
    results: dict[str, Any] = {}

    if part in ("training", "both"):
        models = training_models()
        steps = {name: training_step(model) for name, model in models.items() if model}
        wrong = check_training(models, {name: step() for name, step in steps.items()})
        if wrong:
            console.print("[red]not timed: " + "; ".join(wrong))
            return 1
        timings = alternate(steps, budget, fewest)
        title = f"training step, B {B}, T {T}, vocabulary {VOCAB}"
        results["training"] = report(console, title, models, timings, B * T)

    if part in ("generation", "both"):
        runs = generation_runs()
        timings = alternate({name: run[1] for name, run in runs.items() if run}, budget, fewest)
        models = {name: run[0] if run else None for name, run in runs.items()}
        title = f"generation, one stream, greedy, {TOKENS} tokens"
        results["generation"] = report(console, title, models, timings, TOKENS)

    limits = limits.or_better(measure_limits())
    console.print(f"limits: {limits}")
    write_json(json, {"limits": vars(limits), **results})
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
