"""Gate statistics of a model in training, shared by callbacks."""

from openxlstm.lm.gate_statistics import GateStatistics, gate_statistics
from openxlstm.train.callback import Evaluated
from openxlstm.train.evaluate import BatchLike


class GateWatch:
    """Computes gate statistics on one batch, once per evaluation for all callbacks.

    Such a callback needs `wants_model`.
    """

    def __init__(self, batch: BatchLike) -> None:
        self._batch = batch
        self._seen: Evaluated | None = None
        self._found: dict[str, GateStatistics] = {}

    def at(self, evaluated: Evaluated) -> dict[str, GateStatistics]:
        """The statistics of the evaluated model, by block."""
        if self._seen is not evaluated:
            assert evaluated.model is not None, "a callback that uses gates sets wants_model"
            device = next(evaluated.model.parameters()).device
            reset = self._batch.reset
            reset = None if reset is None else reset.to(device)
            self._found = gate_statistics(evaluated.model, self._batch.x.to(device), reset)
            self._seen = evaluated
        return self._found
