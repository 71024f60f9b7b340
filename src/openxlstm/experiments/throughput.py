"""Throughput: the cost of a token in training and in generation, against the length of the text.

Contenders alternate in one process, on one thread, and their medians are compared. A repetition of
training is a step on 8192 tokens, from one sequence of 8192 to 64 of 128. A repetition of
generation is some tokens after a context, chosen greedily one after another. xLSTM generates as
`openxlstm generate` does; the Transformer has a key-value cache that is written in place;
`torch.nn.LSTM` keeps its state.

B batch · T time · V vocabulary
"""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openxlstm.config import ModelConfig
from openxlstm.experiments.claims import ContenderResult
from openxlstm.experiments.contenders import LSTMBody, Reader
from openxlstm.experiments.curriculum import Tell
from openxlstm.experiments.transformer import Transformer
from openxlstm.lm.model import LanguageModel

WIDTH, BLOCKS, VOCAB_SIZE = 128, 4, 256
TOKENS = 8192
"""Tokens per training step, for any length of the sequences."""
LENGTHS = (128, 512, 2048, 8192)
CONTEXTS = (256, 1024, 4096, 16384)
PREFILL = 2048
"""Steps that a recurrent model reads per call."""

Step = Callable[[Tensor], Tensor]
"""Reads ids (1,) and returns logits (1, V)."""

ABOUT = {
    "sLSTM": f"{BLOCKS} blocks, 4 heads",
    "mLSTM": f"{BLOCKS} blocks, 4 heads",
    "nn.LSTM": f"{BLOCKS} layers",
    "Transformer": f"{BLOCKS} blocks, 4 heads",
}


def make_model(contender: str) -> nn.Module:
    """A language model of a contender."""
    if contender in ("sLSTM", "mLSTM"):
        layers = contender[0] * BLOCKS
        return LanguageModel(ModelConfig(vocab_size=VOCAB_SIZE, embedding_dim=WIDTH, layers=layers))
    is_lstm = contender == "nn.LSTM"
    body = LSTMBody(WIDTH, BLOCKS) if is_lstm else Transformer(WIDTH, BLOCKS, 4)
    return Reader(VOCAB_SIZE, VOCAB_SIZE, WIDTH, body)


def run_together(seed: int, quick: bool, tell: Tell) -> Iterator[ContenderResult]:
    """Measures all contenders; yields each one again whenever it has a new figure."""
    torch.manual_seed(seed)
    models = {contender: make_model(contender) for contender in ABOUT}
    curves: dict[str, dict[str, dict[int, float]]] = {
        contender: {"training": {}, "generation": {}} for contender in models
    }
    parts = [
        *(("training", length) for length in (LENGTHS[:2] if quick else LENGTHS)),
        *(("generation", context) for context in (CONTEXTS[:2] if quick else CONTEXTS)),
    ]
    for place, (curve, length) in enumerate(parts):
        tell(place / len(parts), f"{curve}, {length:,} steps")
        if curve == "training":
            tokens = 1024 if quick else TOKENS
            repetitions = {
                name: training_repetition(model, length, tokens) for name, model in models.items()
            }
            seconds = medians(repetitions, 1 if quick else 5)
            values = {name: tokens / taken for name, taken in seconds.items()}
        else:
            tokens = 8 if quick else 64
            repetitions = {
                name: generation_repetition(model, length, tokens) for name, model in models.items()
            }
            seconds = medians(repetitions, 3 if quick else 15)
            values = {name: taken / tokens * 1e6 for name, taken in seconds.items()}
        for name, value in values.items():
            curves[name][curve][length] = value
        for name, model in models.items():
            yield ContenderResult(
                contender=name,
                about=ABOUT[name],
                parameters=sum(parameter.numel() for parameter in model.parameters()),
                curves=curves[name],
            )


def medians(repetitions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each repetition; they alternate, after one warm-up each."""
    taken: dict[str, list[float]] = {name: [] for name in repetitions}
    for number in range(rounds + 1):
        for name, repetition in repetitions.items():
            start = time.perf_counter()
            repetition()
            if number:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def training_repetition(model: nn.Module, length: int, tokens: int) -> Callable[[], object]:
    """An AdamW step on `tokens` tokens in sequences of `length`."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    ids = torch.randint(VOCAB_SIZE, (max(1, tokens // length), length + 1))
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].flatten()
    everywhere = torch.ones(inputs.shape, dtype=torch.bool)

    def repetition() -> None:
        if isinstance(model, LanguageModel):
            logits = model(inputs)[0].flatten(0, 1)
        else:
            logits = model(inputs, everywhere)
        optimizer.zero_grad()
        F.cross_entropy(logits, targets).backward()
        optimizer.step()

    return repetition


def generation_repetition(model: nn.Module, context: int, tokens: int) -> Callable[[], object]:
    """Greedy generation of `tokens` tokens after a random context."""
    ids = torch.randint(VOCAB_SIZE, (1, context))
    with torch.no_grad():
        make_steps = after_context(model, ids, context + tokens)

    @torch.no_grad()
    def repetition() -> None:
        step, token = make_steps(), ids[:, -1]
        for _ in range(tokens):
            token = step(token).argmax(-1)

    return repetition


def after_context(model: nn.Module, ids: Tensor, capacity: int) -> Callable[[], Step]:
    """Reads ids (1, T); returns a function that makes a `Step` from there, as often as needed."""
    if isinstance(model, LanguageModel):
        state = model.initial_state(1)
        for part in ids.split(PREFILL, 1):
            state = model(part, state)[1]
        return lambda: model.decoder(state).step
    assert isinstance(model, Reader)
    if isinstance(model.body, LSTMBody):
        _, state = model.body.lstm(model.embedding(ids))
        return lambda: lstm_step(model, state)
    assert isinstance(model.body, Transformer)
    caches = model.body.empty_caches(1, capacity)
    model.body(model.embedding(ids), caches)
    body, context = model.body, ids.shape[1]

    def make_step() -> Step:
        for cache in caches:
            cache.length = context
        return lambda token: model.head(body(model.embedding(token[:, None]), caches)[:, 0])

    return make_step


def lstm_step(model: Reader, state: tuple[Tensor, Tensor]) -> Step:
    body, states = model.body, [state]
    assert isinstance(body, LSTMBody)

    def step(token: Tensor) -> Tensor:
        h, states[0] = body.lstm(model.embedding(token[:, None]), states[0])
        return model.head(h[:, 0])

    return step
