"""`torch.compile` sees through a whole model, as one graph."""

from typing import Literal

import pytest
import torch

from openxlstm import LanguageModel, ModelConfig
from openxlstm.states import tensors

# Tracing an autograd.Function, torch warns of what it does itself.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("layers", "block"), [("ms", "paper"), ("mm", "large")])
def test_compiled_in_one_graph(layers: str, block: Literal["paper", "large"], backend: str) -> None:
    """Logits, state and gradients, of a sequence with resets and of a step after it."""
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=17, embedding_dim=32, layers=layers, block=block, num_heads=2)
    model = LanguageModel(config)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ids, reset = torch.randint(17, (2, 30)), torch.rand(2, 30) < 0.1
    results = []
    for run in (model, compiled):
        logits, state = run(ids, None, reset)
        grads = torch.autograd.grad(logits.logsumexp(-1).sum(), list(model.parameters()))
        step, _ = run(ids[:, :1], state.detach())
        results.append([logits, step, *tensors(state), *grads])
    for ours, expected in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
