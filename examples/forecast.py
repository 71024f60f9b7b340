"""How much water will the river Fulda carry in three days? `torch.nn.LSTM` and `openxlstm.XLSTM`.

    pip install 'openxlstm[examples]'
    python examples/forecast.py [--quick] [--seeds 3] [--threads 2] [--json FILE]

The data is `fulda_climate.csv` in the package spotpy (MIT licence): rain, temperature and discharge
of every day from 1979 to 1988. Rain reaches the river at once, in a week, or with the snow melt in
spring, so a model has to remember it. The first six years are for training, 1985 and 1986 select
the learning rate, and 1987 and 1988 are the test, read day by day without looking ahead.

Errors are the mean |forecast - discharge| in m³/s. The baselines are "as today", "as a year before"
and a linear regression on the last ten days. Both networks have 64 features, two layers, and the
same dropout, optimizer, batches and candidate learning rates.
"""

import csv
import importlib.util
import json as json_module
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

import openxlstm

DAYS_AHEAD = 3
RATES = (1e-3, 3e-3, 1e-2)
"""Candidate learning rates."""
WINDOW, WARM_UP, BATCH = 180, 30, 16
"""Days per training piece, its first days without a loss, and pieces per batch."""


def data_folder() -> Path:
    """The folder of spotpy's data, found without importing it."""
    package = importlib.util.find_spec("spotpy")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the series is in spotpy: pip install 'openxlstm[examples]'")
    return Path(package.submodule_search_locations[0]) / "examples" / "cmf_data"


class River:
    """The series of N days, with a model's inputs and targets.

    x (N, 7): rain, temperature, its range, discharge, its change, season. target (N, 3): the change
    of log discharge from a day to the next three. Both are scaled by what the training years have.
    """

    def __init__(self) -> None:
        with (data_folder() / "fulda_climate.csv").open() as file:
            rows = list(csv.reader(file))[2:]  # names and units
        year = np.array([int(row[0][-4:]) for row in rows])
        highest, lowest, mean, rain, self.discharge = np.array([row[1:] for row in rows], float).T
        self.train, self.test = year < 1985, year >= 1987
        self.validation = ~self.train & ~self.test
        log_q, season = np.log(self.discharge), 2 * np.pi * np.arange(len(rows)) / 365.25
        x = np.stack([
            np.sqrt(rain), mean, highest - lowest, log_q, np.diff(log_q, prepend=log_q[0]),
            np.sin(season), np.cos(season),
        ], axis=1)  # fmt: skip
        self.x = (x - x[self.train].mean(0)) / x[self.train].std(0)
        self.to_come = np.stack(
            [np.append(self.discharge[h:], np.full(h, np.nan)) for h in range(1, DAYS_AHEAD + 1)], 1
        )
        change = np.log(self.to_come) - log_q[:, None]
        self.scale = np.nanstd(change[self.train], 0)
        self.target = change / self.scale

    def forecast(self, target: np.ndarray) -> np.ndarray:
        """Converts targets (N, 3) to discharge in m³/s."""
        return self.discharge[:, None] * np.exp(target * self.scale)

    def errors(self, forecast: np.ndarray, days: np.ndarray) -> list[float]:
        """The mean error over `days` for each day ahead, in m³/s."""
        error = np.abs(forecast - self.to_come)[days]
        return error[~np.isnan(error).any(1)].mean(0).tolist()


def linear_regression(river: River, days: int = 10) -> np.ndarray:
    """Predicts the target (N, 3) by least squares from the inputs of the last `days`."""
    x = np.concatenate([np.roll(river.x, day, axis=0) for day in range(days)], axis=1)
    x = np.append(x, np.ones((len(x), 1)), axis=1)
    known = river.train.copy()
    known[:days] = False  # here, roll has wrapped around
    weights, *_ = np.linalg.lstsq(x[known], river.target[known], rcond=None)
    return x @ weights


class Forecaster(nn.Module):
    """x (B, T, 7) → the target (B, T, 3) at each step."""

    def __init__(self, rnn: nn.LSTM | openxlstm.XLSTM, dropout: float = 0.3) -> None:
        super().__init__()
        self.rnn, self.dropout = rnn, nn.Dropout(dropout)
        self.head = nn.Linear(rnn.hidden_size, DAYS_AHEAD)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        return self.head(self.dropout(y))


CONTENDERS = {
    "nn.LSTM": lambda: nn.LSTM(7, 64, num_layers=2, dropout=0.3, batch_first=True),
    "XLSTM": lambda: openxlstm.XLSTM(7, 64, num_layers=2, dropout=0.3, batch_first=True),
    "XLSTM, bare": lambda: openxlstm.XLSTM(
        7, 64, num_layers=2, dropout=0.3, batch_first=True, block="bare"
    ),
}


def train(model: Forecaster, river: River, rate: float, steps: int, seed: int) -> float:
    """Trains on pieces of the training years; returns the time in seconds."""
    start = time.perf_counter()
    x = torch.tensor(river.x, dtype=torch.float32)
    target = torch.tensor(river.target, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    last = int(river.train.sum()) - WINDOW - DAYS_AHEAD
    for _ in range(steps):
        begins = torch.randint(last, (BATCH, 1), generator=generator)
        days = begins + torch.arange(WINDOW)
        # |error| is minimal at the median, and exp of a median is the median of exp.
        loss = (model(x[days]) - target[days])[:, WARM_UP:].abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


@torch.no_grad()
def forecasts(model: Forecaster, river: River) -> np.ndarray:
    """Forecasts in m³/s (N, 3), in one pass through all days."""
    model.eval()
    return river.forecast(model(torch.tensor(river.x, dtype=torch.float32)[None])[0].numpy())


def main(
    steps: int = 300, seeds: int = 3, threads: int = 2, quick: bool = False,
    json: Path | None = None,
) -> None:  # fmt: skip
    """Prints errors, time and parameters of all.

    Args:
        steps: length of a run.
        seeds: runs with each rate, of which the table has the mean.
        threads: threads of torch.
        quick: a small run that shows that it works: 60 steps, one rate, one seed.
        json: a file for the results.
    """
    torch.set_num_threads(threads)
    rates, steps, seeds = (RATES[2:], 60, 1) if quick else (RATES, steps, seeds)
    river = River()
    a_year_before = np.stack([np.roll(river.discharge, 365 - h) for h in (1, 2, 3)], axis=1)
    results: list[dict[str, Any]] = [
        {"model": name, "errors": river.errors(forecast, river.test)}
        for name, forecast in {
            "as today": np.repeat(river.discharge[:, None], DAYS_AHEAD, axis=1),
            "as a year before": a_year_before,
            "linear regression": river.forecast(linear_regression(river)),
        }.items()
    ]
    for name, make in CONTENDERS.items():
        tried = [trial(make, river, rate, steps, seeds) for rate in rates]
        best = min(tried, key=lambda one: one["validation"])
        results.append({"model": name, **best})
    print(f"{'mean error in m³/s':20}  1 day  2 days  3 days   mean (of seeds)")
    for result in results:
        print(line(result))
    if json is not None:
        json.write_text(json_module.dumps(results, indent=2) + "\n")


def trial(make: Any, river: River, rate: float, steps: int, seeds: int) -> dict[str, Any]:
    """The results of a learning rate, averaged over seeds."""
    validation, test, seconds, parameters = [], [], [], 0
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = Forecaster(make())
        seconds.append(train(model, river, rate, steps, seed))
        forecast = forecasts(model, river)
        validation.append(statistics.mean(river.errors(forecast, river.validation)))
        test.append(river.errors(forecast, river.test))
        parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "rate": rate, "validation": statistics.mean(validation),
        "errors": np.mean(test, axis=0).tolist(), "means": [statistics.mean(each) for each in test],
        "seconds": statistics.mean(seconds), "parameters": parameters,
    }  # fmt: skip


def line(result: dict[str, Any]) -> str:
    errors = "".join(f"{error:8.2f}" for error in result["errors"])
    said = f"{result['model']:18}{errors}{statistics.mean(result['errors']):8.2f}"
    if "rate" in result:
        said += f" ({min(result['means']):.2f} to {max(result['means']):.2f})"
        said += f"  rate {result['rate']:g}, {result['seconds']:.1f} s to train,"
        said += f" {result['parameters']:,} parameters"
    return said


if __name__ == "__main__":
    tyro.cli(main)
