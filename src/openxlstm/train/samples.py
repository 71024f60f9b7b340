"""Text that a model generates during its training."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from openxlstm.lm.model import LanguageModel, evaluation_mode
from openxlstm.train.callback import Evaluated
from openxlstm.train.records import Log

SAMPLES = "samples.txt"
HEADING = re.compile(r"step ([\d,]+), val loss \S+\n")
INDENT = "    "


class Samples(Log):
    """Generates text after evaluations, and appends it to a run's `samples.txt`.

    A sample is a line with step and loss, then the indented text. There is none at step 0, of the
    untrained model.
    """

    wants_model = True

    def __init__(
        self,
        folder: Path,
        write: Callable[[LanguageModel], str],
        *,
        every: int = 1,
        listeners: Sequence[Callable[[int, str], None]] = (),
    ) -> None:
        """
        Args:
            write: generates a sample.
            every: samples are taken at evaluations whose step is a multiple of it.
            listeners: called with the step and the text of each sample.
        """
        super().__init__(folder / SAMPLES)
        self._write = write
        self._every = every
        self._listeners = listeners

    def kept(self, step: int) -> Iterable[str]:
        return (text for number, text in _read(self._path) if number <= step)

    def on_evaluated(self, evaluated: Evaluated) -> None:
        if evaluated.step == 0 or evaluated.step % self._every:
            return
        assert evaluated.model is not None, "wants_model is set"
        with evaluation_mode(evaluated.model), torch.random.fork_rng(devices=[]):
            text = self._write(evaluated.model)
        indented = "".join(f"{INDENT}{line}\n" for line in text.split("\n"))
        self.append(f"step {evaluated.step:,}, val loss {evaluated.val.loss:.4f}\n{indented}\n")
        for listener in self._listeners:
            listener(evaluated.step, text)


def _read(path: Path) -> Iterator[tuple[int, str]]:
    """Step and text of each complete sample in a file; a kill may have truncated the last one."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        step, lines = None, []
        for line in file:
            if line.startswith(INDENT):
                lines.append(line)
            elif line == "\n":
                if step is not None:
                    yield step, "".join([*lines, line])
                step, lines = None, []
            elif heading := HEADING.fullmatch(line):
                step, lines = int(heading[1].replace(",", "")), [line]
