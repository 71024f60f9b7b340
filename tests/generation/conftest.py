"""Small stand-ins for a language model."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn


class ToyState(NamedTuple):
    h: Tensor  # (B, D)
    position: Tensor  # (B,) tokens read


class Toy(nn.Module):
    """A small random GRU; like a language model, with a state that also counts tokens."""

    def __init__(self, vocab_size: int = 17) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.embedding = nn.Embedding(vocab_size, 12)
        self.dropout = nn.Dropout(0.5)
        self.gru = nn.GRU(12, 12, batch_first=True)
        self.head = nn.Linear(12, vocab_size)
        self.calls: list[tuple[int, ...]] = []  # shapes of the ids of each call

    def initial_state(self, batch_size: int) -> ToyState:
        return ToyState(torch.zeros(batch_size, 12), torch.zeros(batch_size, dtype=torch.long))

    def forward(self, ids: Tensor, state: Any = None, reset: Any = None) -> tuple[Tensor, Any]:
        self.calls.append(tuple(ids.shape))
        h, position = state or self.initial_state(len(ids))
        y, h = self.gru(self.dropout(self.embedding(ids)), h.unsqueeze(0))
        return 4 * self.head(y), ToyState(h.squeeze(0), position + ids.shape[1])


class Script(nn.Module):
    """Says the tokens of a script, whatever it reads after its one-token prompt; then its last."""

    def __init__(self, script: list[int], vocab_size: int = 256) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size)
        self.script = nn.Parameter(torch.tensor(script), requires_grad=False)
        self.prompt: list[int] = []

    def forward(self, ids: Tensor, state: Any = None, reset: Any = None) -> tuple[Tensor, Any]:
        if state is None:
            self.prompt, state = ids[0].tolist(), torch.zeros(len(ids), dtype=torch.long)
        place = state.unsqueeze(1) + torch.arange(ids.shape[1])
        said = self.script[place.clamp(max=len(self.script) - 1)]
        logits = 50.0 * nn.functional.one_hot(said, self.config.vocab_size)
        return logits, state + ids.shape[1]


def random_model(name: str) -> Any:
    torch.manual_seed(0)
    if name == "toy":
        return Toy().eval()
    lm = pytest.importorskip("openxlstm.lm.model")
    from openxlstm.config import ModelConfig

    config = ModelConfig(vocab_size=17, embedding_dim=32, layers="ms", num_heads=2)
    model = lm.LanguageModel(config).eval()
    with torch.no_grad():  # far from the near-uniform start, where any mistake would look alike
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model


@pytest.fixture(params=["toy", "real"])
def model(request: pytest.FixtureRequest) -> Any:
    """A random model of 17 tokens that is cheap to run: a fake one, then a LanguageModel."""
    return random_model(request.param)


@pytest.fixture
def toy() -> Any:
    return random_model("toy")


@pytest.fixture
def real() -> Any:
    return random_model("real")


@pytest.fixture
def script() -> Any:
    """The class of models that say what they are told to."""
    return Script
