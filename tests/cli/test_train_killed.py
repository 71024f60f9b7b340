"""A run that is killed again and again ends, bit for bit, as one that never was."""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Jobs
from torch import Tensor, equal

from openxlstm.runs.run_folder import lock
from openxlstm.train.checkpoint import checkpoints, newest, read_tensors, shapes
from openxlstm.train.records import read_metrics

OPTIONS = (
    "--layers", "ms", "--embedding-dim", 16, "--num-heads", 2, "--batch-size", 4, "--window", 8,
    "--eval-every", 40, "--eval-batches", 1, "--quiet", "--auto-resume",
)  # fmt: skip
CARRIES_ALL = ("--sampling", "streams", "--ema-decay", 0.9, "--dropout", 0.1)
"""States, averages and random numbers, besides what every run has."""


def tensors(folder: Path) -> dict[str, Tensor]:
    """All that the newest checkpoint holds, whichever process wrote it."""
    path = newest(folder)
    assert path is not None
    whole = {name: torch.empty(shape) for name, shape in shapes(path).items()}
    read_tensors(path, whole)
    return whole


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [{**record, "seconds": None} for record in read_metrics(folder)]


def kill_again_and_again(
    jobs: Jobs, text: Path, folder: Path, *options: object, kills: int, last: Sequence[int]
) -> None:
    """Starts a run, kills one of its processes at a random moment, and so on; then lets it end.

    Args:
        last: for each process, the last moment of its life at which it is killed.
    """
    draw, world_size = random.Random(kills), len(last)
    command = ("train", "--data", text, "--out", folder, *OPTIONS, *options)
    for _ in range(kills):
        rank = draw.randrange(world_size)
        kill = rank, draw.randint(1, last[rank])
        ended = jobs.run(*command, world_size=world_size, kill=kill)
        assert ended.codes[rank] == -9, (kill, ended)
        # The others say that they have lost it.
        assert set(ended.codes) <= {-9, 2}, ended.errors
    ended = jobs.run(*command, world_size=world_size)
    assert ended.codes == [0] * world_size, ended.errors


def assert_same(killed: Path, whole: Path) -> None:
    """Bit for bit, but for the time."""
    ours, theirs = tensors(killed), tensors(whole)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert equal(tensor, theirs[name]), name
    assert metrics(killed) == metrics(whole)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    results = [json.loads((f / "train.json").read_text())["result"] for f in (killed, whole)]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}
    left = {path.name for path in (killed / "checkpoints").iterdir()}
    assert left == {path.name for path in (whole / "checkpoints").iterdir()}
    assert not list(killed.glob(".*")), "nothing unfinished is left behind"


def compare(
    jobs: Jobs,
    text: Path,
    folder: Path,
    *options: object,
    kills: int,
    last: Sequence[int],
    save_every: int = 1,
) -> None:
    """Trains as often as it takes, and once without a kill."""
    # Each checkpoint takes 10 moments of the first process and 1 of another: so long a run cannot
    # come to its end before its last kill.
    steps = save_every * kills * max(1 + last[0] // 10, *last[1:], 0)
    options += ("--steps", steps, "--save-every", save_every)
    command = ("train", "--data", text, "--out", folder / "whole", *OPTIONS, *options)
    ended = jobs.run(*command, world_size=len(last))
    assert ended.codes == [0] * len(last), ended.errors
    kill_again_and_again(jobs, text, folder / "killed", *options, kills=kills, last=last)
    assert_same(folder / "killed", folder / "whole")


@pytest.mark.parametrize(
    ("kills", "save_every"),
    [(10, 1), *(pytest.param(60, every, marks=pytest.mark.slow) for every in (1, 7))],
)
def test_killed_again_and_again(
    kills: int, save_every: int, jobs: Jobs, text_file: Path, tmp_path: Path
) -> None:
    """Its beginning is some 45 moments long, a checkpoint 11, and going on some 20."""
    compare(jobs, text_file, tmp_path, *CARRIES_ALL, kills=kills, last=[60], save_every=save_every)


@pytest.mark.parametrize(
    ("kills", "strategy"),
    [(2, "fsdp"), *(pytest.param(20, name, marks=pytest.mark.slow) for name in ("ddp", "fsdp"))],
)
def test_killed_among_two_processes(
    kills: int, strategy: str, jobs: Jobs, text_file: Path, tmp_path: Path
) -> None:
    options = (*CARRIES_ALL, "--strategy", strategy)
    compare(jobs, text_file, tmp_path, *options, kills=kills, last=[60, 4], save_every=2)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_once_at_each_moment(jobs: Jobs, text_file: Path, tmp_path: Path) -> None:
    options = (*CARRIES_ALL, "--steps", 5, "--save-every", 2)
    command = ("train", "--data", text_file, *OPTIONS, *options, "--out")
    assert jobs.run(*command, tmp_path / "whole").codes == [0]
    for moment in range(1, 10**6):
        folder = tmp_path / str(moment)
        codes = jobs.run(*command, folder, kill=(0, moment)).codes
        if codes == [0]:
            assert moment > 100, "it came to its end before"
            return
        assert codes == [-9]
        assert jobs.run(*command, folder).codes == [0]
        assert_same(folder, tmp_path / "whole")


# ---- where a checkpoint cannot be written -----------------------------------------------------


@pytest.mark.parametrize("limit", [1_000, 20_000, 40_000, 100_000])
def test_a_full_disk_ends_the_run_with_the_last_checkpoint_whole(
    limit: int, jobs: Jobs, text_file: Path, tmp_path: Path
) -> None:
    """The kernel refuses to let a file grow beyond a limit, as it does on a full disk."""
    folder = tmp_path / "run"
    command = ("train", "--data", text_file, "--out", folder, *OPTIONS, "--learning-rate", 1e-5)
    assert jobs.run(*command, "--steps", 40).codes == [0]
    saved, before = checkpoints(folder), tensors(folder)
    ended = jobs.run(*command, "--steps", 80, largest_file=limit)
    assert ended.codes == [2]
    assert "File too large" in ended.errors[0]
    assert ended.errors[0].count("\n") == 1
    assert checkpoints(folder) == saved
    assert all(equal(part, before[name]) for name, part in tensors(folder).items())
    assert not list(folder.rglob(".*")), "nothing is left of what did not fit"
    assert jobs.run(*command, "--steps", 80).codes == [0]


def test_a_folder_that_cannot_be_written(jobs: Jobs, text_file: Path, tmp_path: Path) -> None:
    """root may write anywhere: a file in the folder's place says no to root as well."""
    folder = tmp_path / "run"
    command = ("train", "--data", text_file, "--out", folder, *OPTIONS, "--steps", 30)
    assert jobs.run(*command, "--save-every", 10).codes == [0]
    saved = checkpoints(folder)
    assert len(saved) == 3
    (folder / "checkpoints").rename(folder / "kept")
    (folder / "checkpoints").write_text("")
    ended = jobs.run("train", "--resume", "--out", folder, "--steps", 40, "--quiet")
    assert ended.codes == [2]
    (folder / "checkpoints").unlink()
    (folder / "kept").rename(folder / "checkpoints")
    assert newest(folder) == saved[0]
    again = jobs.run("train", "--resume", "--out", folder, "--steps", 40, "--quiet")
    assert (again.codes, again.errors) == ([0], [""])


def test_two_cannot_train_the_same_run(jobs: Jobs, text_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ("train", "--data", text_file, "--out", folder, *OPTIONS, "--steps", 5)
    assert jobs.run(*command).codes == [0]
    resume = ("train", "--resume", "--out", folder, "--steps", 9, "--quiet")
    with lock(folder):
        ended = jobs.run(*resume)
    assert ended.codes == [2]
    assert "is being trained by another process" in ended.errors[0]
    assert jobs.run(*resume).codes == [0]


def test_the_same_command_starts_and_goes_on(jobs: Jobs, text_file: Path, tmp_path: Path) -> None:
    """As a scheduler gives it again; what it may not change is refused."""
    command = ("train", "--data", text_file, "--out", tmp_path / "run", *OPTIONS, "--steps", 5)
    assert jobs.run(*command).codes == [0]
    assert jobs.run(*command).codes == [0]
    assert jobs.run(*command, "--steps", 6).codes == [0]
    ended = jobs.run(*command, "--window", 9)
    assert ended.codes == [2]
    assert "--window cannot change in a run that is resumed (it is 8)" in ended.errors[0]


@pytest.mark.parametrize(
    "left", [["tokenizer.json", "tokenizer_config.json"], ["config.json", ".train.json.1f.tmp"], []]
)
def test_a_run_that_was_killed_before_it_began(
    left: list[str], jobs: Jobs, text_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("{")
    command = ("train", "--data", text_file, "--out", folder, *OPTIONS, "--steps", 5)
    assert jobs.run(*command).codes == [0]
    assert not list(folder.glob(".*"))


def test_a_run_that_had_saved_nothing(jobs: Jobs, text_file: Path, tmp_path: Path) -> None:
    """It starts from step 0, and says so; but not if something was learned."""
    folder = tmp_path / "run"
    command = ("train", "--data", text_file, "--out", folder, *OPTIONS, "--steps", 5)
    assert jobs.run(*command).codes == [0]
    first = tensors(folder)
    shutil.rmtree(folder / "checkpoints")
    assert jobs.run(*command).codes == [2], "it has lost its checkpoints, and still has its model"
    records = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(records[0] + "\n")
    ended = jobs.run(*command)
    assert ended.codes == [0]
    assert "had not saved anything yet; it starts from step 0" in ended.errors[0]
    assert all(equal(part, first[name]) for name, part in tensors(folder).items())
