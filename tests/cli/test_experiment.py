"""`openxlstm experiment`, in its quick form."""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_cases import cli
from jobs import children, gone, needs_proc, started

from openxlstm.experiments import workers
from openxlstm.experiments.catalogue import EXPERIMENTS
from openxlstm.experiments.claims import ContenderResult
from openxlstm.experiments.curriculum import Recipe

QuickRuns = Callable[..., dict[str, Any]]

PNG = b"\x89PNG\r\n\x1a\n"


def curve_of(result: dict[str, Any], contender: str, curve: str = "accuracy") -> dict[int, float]:
    (found,) = (each for each in result["contenders"] if each["name"] == contender)
    return dict(found["curves"][curve])


def here(jobs: list[Any], processes: int, hear: Any) -> Iterator[Any]:
    """Does jobs in this process, which saves the seconds that each takes to start."""
    for job in jobs:
        experiment = EXPERIMENTS[job.experiment]
        module: Any = importlib.import_module(f"openxlstm.experiments.{experiment.module}")
        tell = functools.partial(hear, job.contender)
        if experiment.together:
            yield from module.run_together(job.seed, job.quick, tell)
        else:
            yield module.run(job.experiment, job.contender, job.seed, job.quick, tell)


@pytest.fixture(scope="module")
def quick_runs(tmp_path_factory: pytest.TempPathFactory) -> QuickRuns:
    """The result of a quick run of an experiment, run once, with what the command said. Where
    nothing is to be learned, each contender takes five steps."""

    @functools.cache
    def run(name: str, learns: bool = False) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("experiments") / "new" / name
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("openxlstm.cli.experiment.run_jobs", here)
            if not (learns or EXPERIMENTS[name].together):
                module = f"openxlstm.experiments.{EXPERIMENTS[name].module}"
                patch.setattr(f"{module}.Recipe", lambda **o: Recipe(**{**o, "steps": 5}))
            said = cli("experiment", name, "--quick", "--out", folder)
        assert said.code == 0
        assert sorted(path.name for path in folder.iterdir()) == ["plot.png", "result.json"]
        assert (folder / "plot.png").read_bytes().startswith(PNG)
        return {**json.loads((folder / "result.json").read_text()), **vars(said)}

    return run


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_quick_run(name: str, quick_runs: QuickRuns) -> None:
    result, experiment = quick_runs(name), EXPERIMENTS[name]
    assert result["experiment"] == name
    assert (result["quick"], result["complete"], result["seed"]) == (True, True, 0)
    assert {each["name"] for each in result["contenders"]} == set(experiment.contenders)
    assert len(result["claims"]) == len(experiment.claims)
    assert {each["verdict"] for each in result["claims"]} == {"too short to judge"}
    for words in (experiment.title, "too short to judge", *experiment.contenders):
        assert words in result["out"]
    lines = 1 + (0 if experiment.together else len(experiment.contenders))
    assert result["err"].count("\n") == lines
    for contender in result["contenders"]:
        assert contender["parameters"] > 1000
        assert contender["curves"]


def test_a_quick_parity_is_learned(quick_runs: QuickRuns) -> None:
    """A hundred and fifty steps are enough for those who can, and never for those who cannot."""
    result = quick_runs("parity", learns=True)
    assert curve_of(result, "sLSTM")[40] > 0.95
    assert curve_of(result, "mLSTM")[256] < 0.7
    assert curve_of(result, "Transformer")[256] < 0.7


@pytest.mark.slow
def test_a_quick_recall_learns(quick_runs: QuickRuns) -> None:
    result = quick_runs("recall", learns=True)
    assert curve_of(result, "mLSTM")[2] > 5 / 128


def test_a_quick_throughput_measures(quick_runs: QuickRuns) -> None:
    result = quick_runs("throughput")
    for contender in EXPERIMENTS["throughput"].contenders:
        for curve in ("training", "generation"):
            assert min(curve_of(result, contender, curve).values()) > 0


@pytest.mark.parametrize("arguments", [[], ["--list"], ["parity", "--list"]])
def test_list(arguments: list[str]) -> None:
    result = cli("experiment", *arguments)
    assert (result.code, result.err) == (0, "")
    for name, experiment in EXPERIMENTS.items():
        assert f"{name}  {experiment.title}" in result.out
    assert list(Path().iterdir()) == []


def made_up(*names: str) -> Callable[..., Generator[ContenderResult]]:
    """Stands in for the processes: contenders that know everything; one of them interrupts."""

    def run(
        jobs: list[workers.ContenderJob], processes: int, hear: workers.Hear
    ) -> Generator[ContenderResult]:
        for job in jobs:
            if job.contender not in names:
                raise KeyboardInterrupt
            hear(job.contender, 0.5, "half")
            yield ContenderResult(
                contender=job.contender, about="x", parameters=1, seconds=2.0, steps=3, answers=4,
                curves={"accuracy": {4: 1.0, 256: 1.0}},
            )  # fmt: skip

    return run


def test_ctrl_c_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openxlstm.cli.experiment.run_jobs", made_up("sLSTM"))
    result = cli("experiment", "parity", "--json", "other.json", "--quiet")
    assert (result.code, result.err) == (130, "")
    assert "holds: an sLSTM" in result.out
    assert "not measured: an mLSTM" in result.out
    written = json.loads(Path("other.json").read_text())
    assert written == json.loads(Path("experiments/parity/result.json").read_text())
    assert written["complete"] is False
    assert [each["name"] for each in written["contenders"]] == ["sLSTM"]
    monkeypatch.setattr("openxlstm.cli.experiment.run_jobs", made_up())
    result = cli("experiment", "recall")
    assert (result.code, result.out) == (130, "")
    assert not Path("experiments/recall").exists()


def test_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = {*EXPERIMENTS["parity"].contenders, workers.ALL}
    monkeypatch.setattr("openxlstm.cli.experiment.run_jobs", made_up(*everybody))
    result = cli("experiment", "all", "--out", "here")
    assert result.code == 0
    assert "does not hold: an mLSTM" in result.out, "for it knew everything"
    assert {path.name for path in Path("here").iterdir()} == set(EXPERIMENTS)
    assert "parity: sLSTM, 3 steps, 2 s\n" in result.err


def test_a_crash_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = workers.Crash("mLSTM", "ValueError: no", "Traceback: here")

    def run(*_: object) -> Generator[workers.Crash]:
        yield crash

    monkeypatch.setattr("openxlstm.cli.experiment.run_jobs", run)
    result = cli("experiment", "parity", "--quiet")
    assert (result.code, result.out) == (2, "")
    assert result.err == "openxlstm: parity: mLSTM did not finish: ValueError: no\n"
    assert "Traceback: here" in cli("experiment", "parity", "--quiet", "-v").err


@needs_proc
def test_a_real_ctrl_c(tmp_path: Path) -> None:
    """As a terminal sends it, to every process of the group."""
    command = [sys.executable, "-m", "openxlstm", "experiment", "memory", "--out", tmp_path / "x"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(*command, **pipes, start_new_session=True) as process:
        while len(begun := children(process.pid)) < 2:  # one of them keeps track of resources
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")
    while not all(map(gone, begun)):
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("alchemy", "there is no experiment 'alchemy'; there are: parity, "),
        ("parity recall", "recall"),
        ("parity --seed -1", "seed must be between 0"),
        ("parity --seed x", "--seed"),
        ("parity --processes 0", "processes must be at least 1, not 0"),
        ("parity --out file", "--out needs a folder, and file is a file"),
        ("parity --out file/below", "cannot be written"),
        ("all --out file", "cannot be written"),
        ("parity --json .", "--json needs a file, and . is a folder"),
        ("all --json x.json", "--json is for one experiment"),
        ("parity --faster", "--faster"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments: str, words: str) -> None:
    """Seen before anything is trained."""
    Path("file").write_text("a file, no folder")
    result = cli("experiment", *arguments.split())
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("openxlstm: ")
    assert result.err.count("\n") == 1
    assert words in result.err
    assert [path.name for path in Path().iterdir()] == ["file"]
