"""Several processes train one model: as one process would, and whatever happens to one of them."""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Jobs, children, needs_proc, started
from torch import Tensor

import openxlstm
from openxlstm.lm.config_file import read_config
from openxlstm.train.checkpoint import checkpoints, load_weights, newest, shapes
from openxlstm.train.records import read_metrics

STEPS = 12
OPTIONS = (
    "--layers", "ms", "--embedding-dim", 16, "--num-heads", 2, "--batch-size", 8, "--window", 8,
    "--steps", STEPS, "--eval-every", 4, "--eval-batches", 2, "--save-every", 3, "--quiet",
)  # fmt: skip
STRATEGIES = ["ddp", "fsdp"]
SAMPLINGS = ["windows", "streams"]

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(jobs: Jobs, text_file: Path) -> Train:
    """Trains in a number of processes, which must all end well."""

    def job(folder: Path, world_size: int, *options: object) -> Path:
        arguments = ("train", "--data", text_file, "--out", folder, *OPTIONS, *options)
        ended = jobs.run(*arguments, world_size=world_size)
        assert ended.codes == [0] * world_size, ended.errors
        assert ended.errors == [""] * world_size
        return folder

    return job


@pytest.fixture(scope="module")
def alone(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What one process does, for each way to sample."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: train(folder / name, 1, "--sampling", name) for name in SAMPLINGS}


def losses(folder: Path, but: int | None = None) -> list[Any]:
    """What a run's metrics say, but for time, and for one step."""
    kinds = ("step", "train_loss", "val_loss", "loss", "gradient_norm", "learning_rate")
    records = [record for record in read_metrics(folder) if record["step"] != but]
    return [[record[k] for k in kinds if k in record] for record in records]


def weights(folder: Path) -> dict[str, Tensor]:
    """Those of the newest checkpoint."""
    model = openxlstm.LanguageModel(read_config(folder, openxlstm.ModelConfig))
    path = newest(folder)
    assert path is not None
    load_weights(path, model)
    return model.state_dict()


def assert_same(actual: Path, expected: Path, *, but: int | None = None) -> None:
    """The same run, but for the rounding of sums in another order (and for what was measured when
    it was stopped in a step). Adam makes much of a rounding error in a gradient near 0, so that
    weights are compared on the whole."""
    ours, theirs = losses(actual, but), losses(expected)
    assert len(ours) == len(theirs) > 3
    for mine, its in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(its, rel=1e-5, abs=1e-5)
    there = weights(expected)
    for name, tensor in weights(actual).items():
        assert (tensor - there[name]).abs().mean() < 1e-4, name


# ---- the same as one --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world_size", "strategy", "sampling"),
    [(2, "ddp", "windows"), (2, "fsdp", "streams"), (4, "ddp", "streams"), (4, "fsdp", "windows")],
)
def test_many_are_as_one(
    world_size: int,
    strategy: str,
    sampling: str,
    train: Train,
    alone: dict[str, Path],
    tmp_path: Path,
) -> None:
    options = ("--sampling", sampling, "--strategy", strategy)
    folder = train(tmp_path / "run", world_size, *options)
    assert_same(folder, alone[sampling])
    result = json.loads((folder / "train.json").read_text())["result"]
    assert (result["step"], result["tokens"]) == (STEPS, STEPS * 64)
    assert len(list(checkpoints(folder)[0].glob("*.safetensors"))) == world_size
    best = openxlstm.LanguageModel.from_pretrained(folder)  # in one file
    for name, tensor in best.state_dict().items():
        assert torch.equal(tensor, weights(folder)[name]), "the last one was the best"


@pytest.mark.parametrize(
    ("sampling", "world_size", "options"),
    [
        ("windows", 1, ["--accumulate", 4]),
        ("streams", 1, ["--accumulate", 2, "--recompute-blocks"]),
        ("windows", 2, ["--accumulate", 2, "--strategy", "fsdp", "--recompute-blocks"]),
        ("streams", 2, ["--accumulate", 2]),
    ],
    ids=str,
)
def test_in_parts_and_with_less_memory(
    sampling: str,
    world_size: int,
    options: list[object],
    train: Train,
    alone: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = train(tmp_path / "run", world_size, "--sampling", sampling, *options)
    assert_same(folder, alone[sampling])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_averages_among_many(strategy: str, train: Train, tmp_path: Path) -> None:
    options = ("--ema-decay", 0.8, "--eval-batches", 1)
    one = train(tmp_path / "one", 1, *options)
    two = train(tmp_path / "two", 2, *options, "--strategy", strategy)
    assert_same(two, one)


def test_each_process_drops_other_elements(train: Train, tmp_path: Path) -> None:
    """With dropout the losses are those of other masks, and the same ones each time."""
    first, again, other = (
        train(tmp_path / name, 2, "--dropout", 0.2, "--seed", seed)
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert losses(first) == losses(again)
    assert losses(first) != losses(other)


# ---- other numbers of processes ---------------------------------------------------------------


@pytest.fixture(scope="module")
def constant(train: Train, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As `alone`, at a rate that does not know how long the run will be."""
    folder, options = tmp_path_factory.mktemp("constant"), ("--schedule", "constant")
    return {name: train(folder / name, 1, *options, "--sampling", name) for name in SAMPLINGS}


@pytest.mark.parametrize(
    ("sampling", "before", "after"),
    [("streams", (2, "fsdp"), (4, "fsdp")), ("windows", (4, "fsdp"), (1, "ddp")),
     ("streams", (1, "ddp"), (2, "fsdp")), ("windows", (2, "ddp"), (4, "ddp")),
     ("streams", (2, "fsdp"), (2, "ddp"))],
    ids=str,
)  # fmt: skip
def test_a_run_goes_on_at_another_size(
    sampling: str,
    before: tuple[int, str],
    after: tuple[int, str],
    train: Train,
    constant: dict[str, Path],
    jobs: Jobs,
    tmp_path: Path,
) -> None:
    """Stopped in the middle, between two checkpoints; the states of streams move along."""
    folder = tmp_path / "run"
    options = ("--schedule", "constant", "--sampling", sampling)
    train(folder, before[0], *options, "--strategy", before[1], "--steps", 5)
    assert [path.name for path in checkpoints(folder)] == [
        "step-00000005", "step-00000003", "step-00000000",
    ]  # fmt: skip
    ended = jobs.run(
        "train", "--resume", "--out", folder, "--steps", STEPS, "--strategy", after[1], "--quiet",
        world_size=after[0],
    )  # fmt: skip
    assert ended.codes == [0] * after[0], ended.errors
    assert_same(folder, constant[sampling], but=5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_for_long_and_at_many_sizes(
    sampling: str, train: Train, jobs: Jobs, tmp_path: Path
) -> None:
    """Some hundred steps; a run that is stopped and goes on with other numbers of processes."""
    draw, steps, folder = random.Random(0), 40, tmp_path / "hops"
    options = ("--schedule", "constant", "--warmup", 0, "--learning-rate", 2e-4)
    options += ("--sampling", sampling, "--eval-every", 40, "--save-every", 40, "--ema-decay", 0.9)
    whole = train(tmp_path / "whole", 1, *options, "--steps", 400)
    for world_size, strategy in ((2, "ddp"), (4, "fsdp")):
        name = tmp_path / f"{world_size} {strategy}"
        assert_same(
            train(name, world_size, *options, "--steps", 400, "--strategy", strategy), whole
        )
    train(folder, 2, *options, "--steps", steps)
    for steps in range(80, 401, 40):
        world_size, strategy = draw.choice([1, 2, 4]), draw.choice(STRATEGIES)
        resume = ("train", "--resume", "--out", folder, "--steps", steps, "--strategy", strategy)
        ended = jobs.run(*resume, "--quiet", world_size=world_size)
        assert ended.codes == [0] * world_size, ended.errors
    assert_same(folder, whole)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_at_the_same_size_it_is_the_same_bit_for_bit(
    strategy: str, train: Train, jobs: Jobs, tmp_path: Path
) -> None:
    options = ("--schedule", "constant", "--strategy", strategy, "--dropout", 0.1)
    options += ("--sampling", "streams", "--ema-decay", 0.5)
    whole = train(tmp_path / "whole", 2, *options)
    parts = train(tmp_path / "parts", 2, *options, "--steps", 7)
    resume = ("train", "--resume", "--out", parts, "--steps", STEPS, "--strategy", strategy)
    assert jobs.run(*resume, "--quiet", world_size=2).codes == [0, 0]
    for name, tensor in weights(parts).items():
        assert torch.equal(tensor, weights(whole)[name]), name
    assert losses(parts)[-1] == losses(whole)[-1]


def test_a_checkpoint_in_shards_has_everything_once(train: Train, tmp_path: Path) -> None:
    one, four = (
        train(tmp_path / str(n), n, "--strategy", "fsdp", "--sampling", "streams") for n in (1, 4)
    )
    assert shapes(checkpoints(one)[0]) == shapes(checkpoints(four)[0])
    sizes = [
        sum(file.stat().st_size for file in checkpoints(folder)[0].glob("*.safetensors"))
        for folder in (one, four)
    ]
    assert sizes[1] < 1.5 * sizes[0] + 4 * 20_000, "headers apart, nothing is stored twice"


@pytest.mark.parametrize(
    ("world_size", "options", "words"),
    [
        (3, [], "a batch of 8 cannot be shared evenly by 3 processes"),
        (2, ["--accumulate", 3], "make --batch-size a multiple of 6"),
        (2, ["--layers", "x"], "unknown letter"),
    ],
)
def test_what_cannot_be_shared(
    world_size: int, options: list[object], words: str, jobs: Jobs, text_file: Path, tmp_path: Path
) -> None:
    arguments = ("train", "--data", text_file, "--out", tmp_path / "run", *OPTIONS, *options)
    ended = jobs.run(*arguments, world_size=world_size)
    assert ended.codes == [2] * world_size
    for rank, said in enumerate(ended.errors):
        assert said.startswith(f"openxlstm (process {rank} of {world_size}): ")
        assert words in said
        assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---- what may happen --------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_that_dies_ends_the_job_and_costs_nothing(
    dead: int, strategy: str, jobs: Jobs, text_file: Path, train: Train, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("--strategy", strategy, "--save-every", 1, "--steps", 10**6, "--eval-every", 10**6)
    arguments = ("train", "--data", text_file, "--out", folder, *OPTIONS, *options)
    ended = jobs.run(*arguments, world_size=2, kill=(dead, [60, 4][dead]))
    assert ended.codes[dead] == -9
    assert ended.codes[1 - dead] == 2, ended.errors
    (line,) = ended.errors[1 - dead].splitlines()
    assert f"process {1 - dead} of 2 lost another process" in line
    assert "resume with --resume" in line
    path = newest(folder)
    assert path is not None
    step = int(path.name.removeprefix("step-"))
    resume = ("train", "--resume", "--out", folder, "--steps", step + 2, "--quiet")
    assert jobs.run(*resume, world_size=1).codes == [0]
    assert json.loads((folder / "train.json").read_text())["result"]["step"] == step + 2


@pytest.mark.parametrize("told", [0, 1])
def test_one_that_is_told_to_stop_stops_all(
    told: int, jobs: Jobs, text_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("--steps", 10**6, "--eval-every", 10**6, "--save-every", 2)
    arguments = ("train", "--data", text_file, "--out", folder, *OPTIONS, *options)
    ended = jobs.run(*arguments, world_size=2, terminate=(told, [60, 4][told]))
    assert ended.codes == [130, 130], ended.errors
    assert "stopping after this step\n" in ended.errors[told]
    step = json.loads((folder / "train.json").read_text())["result"]["step"]
    assert newest(folder) == folder / "checkpoints" / f"step-{step:08}"
    assert step > 0
    assert re.search(rf"stopped at step {step:,}, and everything is saved", ended.errors[0])


def test_torchrun(text_file: Path, alone: dict[str, Path], tmp_path: Path) -> None:
    """As a person starts it, with the checkpoint of a worker that failed and was started again."""
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "openxlstm", "train", "--data", text_file, "--out", folder, *OPTIONS]
    done = subprocess.run(
        [*torchrun, *map(str, command)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same(folder, alone["windows"])


@pytest.mark.slow
@needs_proc
def test_torchrun_starts_again_what_has_died(text_file: Path, tmp_path: Path) -> None:
    """One worker is killed; torchrun stops the other, and the same command goes on."""
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "openxlstm", "train", "--data", text_file, "--out", folder, *OPTIONS,
               "--steps", 600, "--save-every", 1, "--eval-every", 600, "--auto-resume"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*torchrun, "--max-restarts", "1", *command]
    with started(*command, stderr=subprocess.PIPE, env=environment) as job:
        while len(checkpoints(folder)) < 3:
            assert job.poll() is None
            time.sleep(0.1)
        os.kill(children(job.pid)[1], signal.SIGKILL)
        _, said = job.communicate()
        assert job.returncode == 0, said
    assert json.loads((folder / "train.json").read_text())["result"]["step"] == 600
    assert [record["step"] for record in read_metrics(folder)] == [0, *range(10, 601, 10), 600]


def test_minutes_are_those_of_the_first_process(
    jobs: Jobs, text_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = ["train", "--data", text_file, "--out", folder, *OPTIONS, "--minutes", 0.01]
    at = arguments.index("--steps")
    del arguments[at : at + 2]
    assert jobs.run(*arguments, world_size=2).codes == [0, 0]
    result = json.loads((folder / "train.json").read_text())["result"]
    assert result["seconds"] >= 0.6
    assert math.isfinite(result["best_loss"])
