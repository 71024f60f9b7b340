"""Processes side by side: their results, their crashes, and their end."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest

from openxlstm.experiments.claims import ContenderResult
from openxlstm.experiments.workers import ALL, ContenderJob, Crash, ending, jobs_of, run_jobs

PARENT = """
from openxlstm.experiments.workers import jobs_of, run_jobs
if __name__ == "__main__":
    list(run_jobs(jobs_of("parity", 0, False)[1:2], 1, lambda *said: print("working", flush=True)))
"""


def job(contender: str, experiment: str = "parity") -> ContenderJob:
    return ContenderJob(experiment=experiment, contender=contender, seed=0, quick=True)


def ignore(*_: object) -> None:
    pass


def test_jobs() -> None:
    assert [j.contender for j in jobs_of("parity", 1, quick=True)] == [
        "sLSTM", "mLSTM", "nn.LSTM", "Transformer",
    ]  # fmt: skip
    assert [j.contender for j in jobs_of("throughput", 1, quick=True)] == [ALL]


def test_one_crashes_and_the_other_goes_on() -> None:
    results = list(run_jobs([job("alchemist"), job("nn.LSTM")], 1, ignore))
    crash, outcome = results
    assert isinstance(crash, Crash)
    assert crash.reason == "KeyError: 'alchemist'"
    assert "Traceback" in crash.trace
    assert isinstance(outcome, ContenderResult)
    assert outcome.contender == "nn.LSTM"
    assert active_children() == []


def test_one_is_killed() -> None:
    seen = []
    for result in run_jobs([job("mLSTM")], 1, lambda *said: kill_children()):
        seen.append(result)
    assert seen == [
        Crash("mLSTM", "its process was ended by SIGKILL; there may not have been enough memory")
    ]
    assert ending(3) == "its process ended with exit code 3"


def kill_children() -> None:
    for child in active_children():
        child.kill()


def test_whoever_stops_listening_leaves_nobody_behind() -> None:
    results = run_jobs([job("nn.LSTM"), job("mLSTM")], 2, ignore)
    next(results)
    results.close()
    assert active_children() == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_nobody_outlives_a_parent_that_was_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; exec(sys.stdin.read())"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(PARENT)
        parent.stdin.close()
        assert parent.stdout.readline() == "working\n"
        children = [int(pid) for pid in children_of(parent.pid)]
        assert children
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(is_alive(pid) for pid in children)


def children_of(pid: int) -> list[str]:
    done = subprocess.run(
        ["ps", "-ww", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = subprocess.run(
        ["ps", "-ww", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return bool(status.strip()) and not status.startswith("Z")
