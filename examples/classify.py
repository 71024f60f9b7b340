"""Which language is a surname from? `torch.nn.LSTM` and `openxlstm.XLSTM` read it letter by letter.

    pip install 'openxlstm[examples]'
    python examples/classify.py [--quick] [--seeds 3] [--threads 2] [--json FILE]

The names come from the package Faker (MIT licence): up to 500 from each of 14 European and African
languages, collected from censuses and registers. Accents would make the task too easy, so names are
written with the letters a to z. Names that occur in two languages are removed. 70% of each language
are for training, 15% select the learning rate, and 15% are the test.

Names have 2 to 20 letters. A batch is padded to its longest name, and the padding has no effect:
`nn.LSTM` needs a PackedSequence for that, while XLSTM takes `lengths=` (or a PackedSequence). Both
have 96 features, two layers, and the same embedding, dropout before and after them, optimizer,
batches and candidate learning rates.
"""

import importlib.util
import json as json_module
import statistics
import time
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import openxlstm

LANGUAGES = {
    "Croatian": "hr_HR", "Dutch": "nl_NL", "English": "en_GB", "Estonian": "et_EE",
    "Finnish": "fi_FI", "French": "fr_FR", "German": "de_AT", "Irish": "ga_IE",
    "Italian": "it_IT", "Polish": "pl_PL", "Slovak": "sk_SK", "Spanish": "es_ES",
    "Swedish": "sv_SE", "Zulu": "zu_ZA",
}  # fmt: skip
"""Languages, each with the locale of its names in Faker."""

LETTERS = " '-abcdefghijklmnopqrstuvwxyz"
RATES = (1e-3, 3e-3, 1e-2)
"""Candidate learning rates."""


class Names(NamedTuple):
    """Names as letter ids (N, longest), 0 in the padding, with lengths and languages."""

    letters: Tensor
    lengths: Tensor
    languages: Tensor


def plain(name: str) -> str:
    """The name in lower case, without accents."""
    name = name.lower().replace("ł", "l").replace("ø", "o").replace("ß", "ss")
    decomposed = unicodedata.normalize("NFKD", name.replace("’", "'"))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def surnames(locale: str) -> set[str]:
    """All surnames of a locale of Faker that consist of the letters a to z."""
    provider = importlib.import_module(f"faker.providers.person.{locale}").Provider
    lists = [kept for field, kept in vars(provider).items() if "last_name" in field]
    names = {
        plain(name) for kept in lists if isinstance(kept, list | tuple | dict) for name in kept
    }
    return {name for name in names if len(name) > 1 and set(name) <= set(LETTERS)}


def read_names(seed: int = 0, most: int = 500) -> list[Names]:
    """Names for training, validation and test, in this order."""
    if importlib.util.find_spec("faker") is None:
        raise SystemExit("the names are in Faker: pip install 'openxlstm[examples]'")
    by_language = [surnames(locale) for locale in LANGUAGES.values()]
    homes = Counter(name for names in by_language for name in names)
    parts: list[list[tuple[str, int]]] = [[], [], []]
    generator = torch.Generator().manual_seed(seed)
    for language, names in enumerate(by_language):
        only_here = sorted(name for name in names if homes[name] == 1)
        order = torch.randperm(len(only_here), generator=generator)[:most].tolist()
        ends = int(0.7 * len(order)), int(0.85 * len(order))
        for part, chosen in zip(
            parts, (order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]), strict=True
        ):
            part += [(only_here[i], language) for i in chosen]
    return [as_numbers(part) for part in parts]


def as_numbers(names: list[tuple[str, int]]) -> Names:
    numbers = [torch.tensor([1 + LETTERS.index(letter) for letter in name]) for name, _ in names]
    return Names(
        pad_sequence(numbers, batch_first=True),
        torch.tensor([len(name) for name, _ in names]),
        torch.tensor([language for _, language in names]),
    )


class Classifier(nn.Module):
    """Letters (B, T) and lengths (B,) → a score for each language (B, 14)."""

    def __init__(self, rnn: nn.LSTM | openxlstm.XLSTM, dropout: float = 0.3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1 + len(LETTERS), rnn.input_size, padding_idx=0)
        self.rnn = rnn
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(rnn.hidden_size, len(LANGUAGES))

    def forward(self, letters: Tensor, lengths: Tensor) -> Tensor:
        x = self.dropout(self.embedding(letters))
        if isinstance(self.rnn, nn.LSTM):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            _, (h_n, _) = self.rnn(packed)
            last = h_n[-1]
        else:
            y, _ = self.rnn(x, lengths=lengths)
            last = self.rnn.last_output(y, lengths)
        return self.head(self.dropout(last))


CONTENDERS = {
    "nn.LSTM": lambda: nn.LSTM(32, 96, num_layers=2, batch_first=True),
    "XLSTM": lambda: openxlstm.XLSTM(32, 96, num_layers=2, batch_first=True),
}


def train(model: Classifier, names: Names, rate: float, epochs: int, seed: int) -> float:
    """Trains a model in batches of 128; returns the time in seconds."""
    start = time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(names.lengths) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(names.lengths), generator=generator).split(128):
            letters, lengths, languages = (part[rows] for part in names)
            scores = model(letters[:, : int(lengths.max())], lengths)
            loss = F.cross_entropy(scores, languages)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def accuracy(model: Classifier, names: Names) -> float:
    model.eval()
    scores = model(names.letters, names.lengths)
    return (scores.argmax(dim=-1) == names.languages).double().mean().item()


def endings(train: Names, test: Names, count: int = 3) -> float:
    """Accuracy of a baseline that looks up the last letters of a name, as many as it knows, and
    answers with the language in which they are most frequent."""
    known: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)

    def ends(names: Names, i: int) -> list[tuple[int, ...]]:
        name = names.letters[i, : names.lengths[i]].tolist()
        return [tuple(name[-n:]) if n else () for n in range(count, -1, -1)]

    for i, language in enumerate(train.languages.tolist()):
        for end in ends(train, i):
            known[end][language] += 1
    guesses = [
        next(known[end].most_common(1)[0][0] for end in ends(test, i) if end in known)
        for i in range(len(test.lengths))
    ]
    return statistics.mean(
        guess == language for guess, language in zip(guesses, test.languages.tolist(), strict=True)
    )


def main(
    epochs: int = 14, seeds: int = 3, threads: int = 2, quick: bool = False,
    json: Path | None = None,
) -> None:  # fmt: skip
    """Prints accuracy, time and parameters of both.

    Args:
        epochs: how often each name is read in training.
        seeds: runs with each rate, of which the table has the mean.
        threads: threads of torch.
        quick: a small run that shows that it works: 3 epochs, one rate, one seed.
        json: a file for the results.
    """
    torch.set_num_threads(threads)
    rates, epochs, seeds = (RATES[1:2], 3, 1) if quick else (RATES, epochs, seeds)
    parts = read_names()
    training, _, test = parts
    results: list[dict[str, Any]] = [
        {"model": "last three letters", "accuracy": endings(training, test)}
    ]
    for name, make in CONTENDERS.items():
        tried = [trial(make, parts, rate, epochs, seeds) for rate in rates]
        best = max(tried, key=lambda one: one["validation"])
        results.append({"model": name, **best})
    print(f"{len(LANGUAGES)} languages, {len(training.lengths)} names to learn from")
    print(f"right, of the {len(test.lengths)} names of the test, mean (of seeds):")
    for result in results:
        print(line(result))
    if json is not None:
        json.write_text(json_module.dumps(results, indent=2) + "\n")


def trial(make: Any, parts: list[Names], rate: float, epochs: int, seeds: int) -> dict[str, Any]:
    """The results of a learning rate, averaged over seeds."""
    training, validation, test = parts
    validated, tested, seconds, parameters = [], [], [], 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = Classifier(make())
        seconds.append(train(model, training, rate, epochs, seed))
        validated.append(accuracy(model, validation))
        tested.append(accuracy(model, test))
        parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "rate": rate, "validation": statistics.mean(validated), "accuracies": tested,
        "accuracy": statistics.mean(tested), "seconds": statistics.mean(seconds),
        "parameters": parameters,
    }  # fmt: skip


def line(result: dict[str, Any]) -> str:
    said = f"{result['model']:20}{result['accuracy']:7.1%}"
    if "rate" in result:
        said += f" ({min(result['accuracies']):.1%} to {max(result['accuracies']):.1%})"
        said += f"  rate {result['rate']:g}, {result['seconds']:.1f} s to train,"
        said += f" {result['parameters']:,} parameters"
    return said


if __name__ == "__main__":
    tyro.cli(main)
