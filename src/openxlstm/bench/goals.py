"""Goals: the time of other implementations relative to that of openxlstm."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A ratio to reach against one peer."""

    comparison: str
    peer: str
    ratio: float
    """Time of the peer relative to openxlstm's, at least."""
    T: int | None = None
    """The sequence length to which it applies; None for all."""


GOALS = (
    Goal("mlstm", "attention", 2, T=256),
    Goal("mlstm", "attention", 15, T=4096),
    Goal("slstm", "NX-AI cell", 80),
    Goal("slstm", "nn.LSTM", 4),
    Goal("training", "NX-AI mmmm", 3.5),
    Goal("training", "NX-AI ssss", 25),
    Goal("training", "Hugging Face 4 × large", 1.25),
    Goal("generation", "NX-AI mmmm", 10),
    Goal("generation", "NX-AI ssss", 10),
    Goal("generation", "NX-AI msmm", 10),
    Goal("generation", "Hugging Face 4 × large", 2),
)


def find_goal(comparison: str, peer: str, T: int | None = None) -> float | None:
    """The ratio to reach, or None if there is no goal."""
    for goal in GOALS:
        if (goal.comparison, goal.peer) == (comparison, peer) and goal.T in (None, T):
            return goal.ratio
    return None
