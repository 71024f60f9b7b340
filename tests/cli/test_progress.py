"""What a person sees of a run, on a terminal and in a file."""

import io
import re
from contextlib import redirect_stderr, suppress

import pytest

from openxlstm.cli.progress import TrainingProgress, clock
from openxlstm.train.callback import Evaluated, Progress, Step
from openxlstm.train.evaluate import Evaluation


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> "Screen":
    """What standard error is, and what is written there."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Screen(is_terminal=request.param)


class Screen(io.StringIO):
    """Stands for standard error inside a `with`."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    @property
    def text(self) -> str:
        """Without what moves the cursor, and colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", self.getvalue())


def step(number: int, loss: float = 2.0, seconds: float | None = None) -> Step:
    return Step(
        step=number, tokens=1000 * number, seconds=number if seconds is None else seconds,
        share=number / 100, loss=loss, learning_rate=0.01, gradient_norm=1.5,
    )  # fmt: skip


def evaluated(number: int) -> Evaluated:
    loss = Evaluation(loss=2.0, tokens=5)
    return Evaluated(
        step=number, tokens=1000 * number, seconds=float(number), train=loss, val=loss, best=True
    )


def watch(progress: TrainingProgress) -> None:
    with progress:
        progress.on_start(Progress())
        progress.on_evaluated(evaluated(0))
        for number in range(1, 11):
            progress.on_step(step(number))
        progress._bar.refresh()
        progress.on_evaluated(evaluated(10))
        progress.show_sample(10, "KING:\n\x1b[31mNo.\x07")


def test_what_is_seen(screen: Screen) -> None:
    with redirect_stderr(screen):
        watch(TrainingProgress("the [run]", quiet=False))
    text = screen.text
    assert "the [run]\n\n" in text
    line = "step     10    0:10  train 2.0000  val 2.0000  perplexity 7.389  best\n"
    assert line in text
    assert ("1,000 tokens/s 1:30 left" in text) == screen.is_terminal
    assert ("loss 2.000" in text) == screen.is_terminal
    assert bool(re.search(r"\d MB", text)) == screen.is_terminal
    assert ("\nKING:\n\ufffd[31mNo.\ufffd\n" in text) == screen.is_terminal


def test_quiet_is_silent(screen: Screen) -> None:
    with redirect_stderr(screen):
        progress = TrainingProgress("the run", quiet=True)
        watch(progress)
    assert screen.text == ""


def test_a_loss_that_is_no_number_does_not_stick(screen: Screen) -> None:
    with redirect_stderr(screen), TrainingProgress("", quiet=False) as progress:
        progress.on_start(Progress())
        for number, loss in ((1, 2.0), (2, float("nan")), (3, 2.0)):
            progress.on_step(step(number, loss))
        progress._bar.refresh()
    assert ("loss 2.000" in screen.text) == screen.is_terminal
    assert "nan" not in screen.text


def test_the_end_in_a_line(screen: Screen) -> None:
    """The speed is that of the part since the resume, evaluations and all."""
    with redirect_stderr(screen), TrainingProgress("", quiet=False) as progress:
        progress.on_start(Progress(step=5, tokens=5000, seconds=10.0))
        progress.on_step(step(6, seconds=11.0))
        progress.on_step(step(105, seconds=110.0))
    line = r"105 steps · 105,000 tokens · 1:50 · 1,000 tokens/s · [\d,]+ MB"
    assert bool(re.fullmatch(line, screen.text.splitlines()[-1])) == screen.is_terminal


def test_a_run_that_failed_is_not_summed_up(screen: Screen) -> None:
    with suppress(KeyError), redirect_stderr(screen), TrainingProgress("", quiet=False) as progress:
        progress.on_start(Progress())
        progress.on_step(step(6))
        raise KeyError
    assert "tokens ·" not in screen.text


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 36_061)] == [
        "0:00", "1:00", "59:59", "1:00:00", "10:01:01"
    ]  # fmt: skip
