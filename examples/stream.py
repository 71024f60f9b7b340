"""An endless stream: forecasts of the air temperature by a model that learns day by day.

    pip install 'openxlstm[examples]'
    python examples/stream.py [--quick] [--seeds 3] [--threads 2] [--json FILE]

The stream is a weather station at the Schwingbach in Hesse, every hour from 2014 to 2016, in the
package spotpy (`driver_data_site24.csv`: courtesy of the Chair of Landscape, Water and
Biogeochemical Cycles, Justus Liebig University Gießen; free for any purpose with reference). Each
day brings 24 hours. A model reads them once, starting from the state after the day before, predicts
for each hour the temperature six hours later, and then makes one optimizer step on the forecasts
that can be verified by then. So every forecast is made by weights that have seen nothing after it.

`torch.nn.LSTM` and `openxlstm.XLSTM` have 64 features, two layers, the same optimizer and the same
candidate learning rates, selected on the first year. Errors are the mean |forecast - temperature|
in °C over the following years; the baselines are "as now" and "as a day before". Then the script
shows the state of XLSTM in use: saved in the middle of the stream and loaded again; the stream read
at once, by the day and by the hour; the state reset where another station begins.
"""

import csv
import importlib.util
import json as json_module
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

import openxlstm

HOURS_AHEAD = 6
RATES = (3e-4, 1e-3, 3e-3)
"""Candidate learning rates."""


def read_weather() -> tuple[Tensor, Tensor]:
    """x (days, 24, 11), each feature about 1 in size, and the temperature in °C (days, 24)."""
    package = importlib.util.find_spec("spotpy")  # found without importing it
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the stream is in spotpy: pip install 'openxlstm[examples]'")
    folder = Path(package.submodule_search_locations[0]) / "examples" / "cmf_data"
    hours: list[list[float]] = []
    with (folder / "driver_data_site24.csv").open() as file:
        for row in csv.reader(file):
            if row[0][0].isdigit():
                before = hours[-1] if hours else [0.0] * 7
                read = zip(row[1:], before, strict=True)
                hours.append([float(value) if value else last for value, last in read])
    rain, pressure, sun, humidity, celsius, wind, groundwater = torch.tensor(hours).T
    hour = torch.arange(len(hours)) * 2 * torch.pi
    x = torch.stack([
        rain.log1p(), (pressure - 1013) / 10, sun / 200, (humidity - 80) / 20, (celsius - 10) / 10,
        wind / 2, groundwater - 238, (hour / 24).sin(), (hour / 24).cos(),
        (hour / 24 / 365.25).sin(), (hour / 24 / 365.25).cos(),
    ], dim=-1)  # fmt: skip
    return x.unflatten(0, (-1, 24)), celsius.unflatten(0, (-1, 24))


class Forecaster(nn.Module):
    """x (1, T, 11) and a state → the change of the temperature in the next hours, in units of 5 °C
    (1, T), and the next state."""

    def __init__(self, rnn: nn.LSTM | openxlstm.XLSTM) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(rnn.hidden_size, 1)

    def forward(self, x: Tensor, state: Any = None, **options: Any) -> tuple[Tensor, Any]:
        y, state = self.rnn(x, state, **options)
        return self.head(y)[..., 0], state


CONTENDERS = {
    "nn.LSTM": lambda: nn.LSTM(11, 64, num_layers=2, batch_first=True),
    "XLSTM": lambda: openxlstm.XLSTM(11, 64, num_layers=2, batch_first=True),
    "XLSTM, bare": lambda: openxlstm.XLSTM(
        11, 64, num_layers=2, batch_first=True, block="bare"
    ),
}  # fmt: skip


class Learner:
    """A model that learns from a stream, with everything to be saved: the weights, the optimizer
    and the state."""

    def __init__(self, make: Any, rate: float, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = Forecaster(make())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=rate, fused=True)
        self.state: Any = None

    def read(self, x: Tensor, celsius: Tensor) -> Tensor:
        """Forecasts for a day in °C (24,), made before the model learns from that day.

        Args:
            x: its hours (24, 11).
            celsius: their temperature (24,).
        """
        change, after = self.model(x[None], self.state)
        # Forecasts for tomorrow cannot be verified yet.
        error = change[0, :-HOURS_AHEAD] - (celsius[HOURS_AHEAD:] - celsius[:-HOURS_AHEAD]) / 5
        self.optimizer.zero_grad()
        error.abs().mean().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        # The next day's gradient stops here. An nn.LSTM's state is a tuple of tensors.
        is_lstm = isinstance(self.model.rnn, nn.LSTM)
        self.state = tuple(part.detach() for part in after) if is_lstm else after.detach()
        return celsius + 5 * change[0].detach()

    def save(self, folder: Path) -> None:
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], folder / "weights.pt")
        openxlstm.save_state(self.state, folder / "state.safetensors")

    def load(self, folder: Path) -> None:
        weights, means = torch.load(folder / "weights.pt")
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(means)
        self.state = openxlstm.load_state(folder / "state.safetensors")


def read_all(learner: Learner, x: Tensor, celsius: Tensor) -> Tensor:
    """The forecasts for some days, as one vector (days·24,)."""
    return torch.cat([learner.read(*day) for day in zip(x, celsius, strict=True)])


def error(forecast: Tensor, celsius: Tensor, first: int, last: int) -> float:
    """The mean |error| in °C of the forecasts from one hour to another."""
    to_come = celsius.flatten()[first + HOURS_AHEAD : last + HOURS_AHEAD]
    return (forecast[first : first + len(to_come)] - to_come).abs().mean().item()


def goes_on(make: Any, rate: float, x: Tensor, celsius: Tensor, middle: int) -> float:
    """Largest difference of the forecasts in °C if the learner is saved after `middle` days and
    another one continues from the files."""
    first = Learner(make, rate)
    read_all(first, x[:middle], celsius[:middle])
    with tempfile.TemporaryDirectory() as folder:
        first.save(Path(folder))
        second = Learner(make, rate, seed=1)
        second.load(Path(folder))
    forecasts = (read_all(each, x[middle:], celsius[middle:]) for each in (first, second))
    return torch.sub(*forecasts).abs().max().item()


@torch.no_grad()
def differences(model: Forecaster, x: Tensor) -> dict[str, float]:
    """Largest differences of forecasts for some days (days, 24, 11) in °C, with fixed weights."""
    hours = x.flatten(0, 1)[None]  # (1, T, 11)
    whole, _ = model(hours)

    def in_pieces(size: int) -> Tensor:
        state, said = None, []
        for piece in hours.split(size, dim=1):
            forecast, state = model(piece, state)
            said.append(forecast)
        return torch.cat(said, dim=1)

    begins = torch.zeros(hours.shape[:2], dtype=torch.bool)
    middle = hours.shape[1] // 2
    begins[:, middle] = True  # as if another station began here
    with_reset, _ = model(hours, reset=begins)
    alone, _ = model(hours[:, middle:])
    pairs = {
        "by the day and in one go": (in_pieces(24), whole),
        "by the hour and in one go": (in_pieces(1), whole),
        "after a reset and alone": (with_reset[:, middle:], alone),
    }
    return {name: 5 * (a - b).abs().max().item() for name, (a, b) in pairs.items()}


def trial(make: Any, x: Tensor, celsius: Tensor, rate: float, seeds: int) -> dict[str, Any]:
    """The results of a learning rate, averaged over seeds."""
    first, last = len(x) * 24 // 3, len(x) * 24
    early, late, seconds, parameters = [], [], [], 0
    for seed in range(seeds):
        start, learner = time.perf_counter(), Learner(make, rate, seed)
        forecast = read_all(learner, x, celsius)
        seconds.append(time.perf_counter() - start)
        early.append(error(forecast, celsius, 0, first))
        late.append(error(forecast, celsius, first, last))
        parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    return {
        "rate": rate, "first_year": statistics.mean(early), "error": statistics.mean(late),
        "errors": late, "milliseconds": 1e3 * statistics.mean(seconds) / len(x),
        "parameters": parameters,
    }  # fmt: skip


def line(result: dict[str, Any]) -> str:
    said = f"{result['model']:16}{result['error']:6.2f}"
    if "rate" in result:
        said += f" ({min(result['errors']):.2f} to {max(result['errors']):.2f})"
        said += f"  rate {result['rate']:g}, {result['milliseconds']:.1f} ms a day,"
        said += f" {result['parameters']:,} parameters"
    return said


def main(
    days: int | None = None, seeds: int = 3, threads: int = 2, quick: bool = False,
    json: Path | None = None,
) -> None:  # fmt: skip
    """Prints errors, time and parameters of all models, and the checks of the state.

    Args:
        days: how much of the stream is read; None for all of it.
        seeds: runs with each rate, of which the table has the mean.
        threads: threads of torch.
        quick: a short stream that shows that it works: 240 days, one rate, one seed.
        json: a file for the results.
    """
    torch.set_num_threads(threads)
    rates, days, seeds = (RATES[1:2], 240, 1) if quick else (RATES, days, seeds)
    x, celsius = (part[:days] for part in read_weather())
    first, last = len(x) * 24 // 3, len(x) * 24
    now = celsius.flatten()
    results: list[dict[str, Any]] = [
        {"model": name, "error": error(forecast, celsius, first, last)}
        for name, forecast in {"as now": now, "as a day before": now.roll(24 - HOURS_AHEAD)}.items()
    ]
    for name, make in CONTENDERS.items():
        tried = [trial(make, x, celsius, rate, seeds) for rate in rates]
        best = min(tried, key=lambda one: one["first_year"])
        results.append({"model": name, **best})
    print("mean error in °C (of seeds)")
    for result in results:
        print(line(result))
    make, rate = CONTENDERS["XLSTM"], rates[0]
    kept = {"saved in the middle and not": goes_on(make, rate, x[:60], celsius[:60], middle=30)}
    learner = Learner(make, rate)
    read_all(learner, x[:60], celsius[:60])
    kept |= differences(learner.model, x[60:120])
    for name, difference in kept.items():
        print(f"{name:30}{difference:9.1e} °C apart")
    if json is not None:
        said = {"results": results, "differences": kept}
        json.write_text(json_module.dumps(said, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
