"""The gates of a model that is trained, for those who tell of a run."""

from openxlstm.lm.gate_statistics import GateStatistics, gate_statistics
from openxlstm.train.callback import Evaluated
from openxlstm.train.evaluate import BatchLike


class GateWatch:
    """Looks at the gates over one batch, once an evaluation however many callbacks ask for it.

    Such a callback `wants_model`.
    """

    def __init__(self, batch: BatchLike) -> None:
        self._batch = batch
        self._seen: Evaluated | None = None
        self._found: dict[str, GateStatistics] = {}

    def at(self, evaluated: Evaluated) -> dict[str, GateStatistics]:
        """The statistics by block of the model that was evaluated just now."""
        if self._seen is not evaluated:
            assert evaluated.model is not None, "who asks for gates wants a model"
            device = next(evaluated.model.parameters()).device
            reset = self._batch.reset
            reset = None if reset is None else reset.to(device)
            self._found = gate_statistics(evaluated.model, self._batch.x.to(device), reset)
            self._seen = evaluated
        return self._found
