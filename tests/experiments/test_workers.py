"""Processes side by side: their results, their crashes, and their end."""

import signal
import subprocess
import sys
import time
from multiprocessing import active_children

from jobs import children, gone, needs_proc, started

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


def test_one_crashes_another_is_killed_and_the_third_goes_on() -> None:
    def kill_mlstm(who: str, *_: object) -> None:
        if who == "mLSTM":
            for child in active_children():
                child.kill()

    results = run_jobs([job("alchemist"), job("mLSTM"), job("nn.LSTM")], 1, kill_mlstm)
    crash, killed, outcome = results
    reason = "its process was ended by SIGKILL; there may not have been enough memory"
    assert killed == Crash("mLSTM", reason)
    assert ending(3) == "its process ended with exit code 3"
    assert isinstance(crash, Crash)
    assert crash.reason == "KeyError: 'alchemist'"
    assert "Traceback" in crash.trace
    assert isinstance(outcome, ContenderResult)
    assert outcome.contender == "nn.LSTM"
    assert active_children() == []


def test_whoever_stops_listening_leaves_nobody_behind() -> None:
    results = run_jobs([job("alchemist"), job("mLSTM")], 2, ignore)
    next(results)
    results.close()
    assert active_children() == []


@needs_proc
def test_nobody_outlives_a_parent_that_was_killed() -> None:
    command = [sys.executable, "-c", "import sys; exec(sys.stdin.read())"]
    with started(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(PARENT)
        parent.stdin.close()
        assert parent.stdout.readline() == "working\n"
        begun = children(parent.pid)
        assert begun
        parent.send_signal(signal.SIGKILL)
    while not all(map(gone, begun)):
        time.sleep(0.01)
