"""PEFT's adapters and accelerate's offloading do with our modules what they do with any other."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from openxlstm import XLSTM, LanguageModel, ModelConfig

peft = pytest.importorskip("peft")
accelerate = pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about other models

V = 17
BLOCKS: dict[str, dict[str, Any]] = {
    "paper": {
        "layers": "ms",
        "target_modules": ["up_proj", "down_proj", "head", "token_embedding"],
    },
    "large": {
        "layers": "mm",
        "target_modules": "all-linear",
        "modules_to_save": ["head"],
    },
}
ids = torch.randint(V, (2, 7), generator=torch.Generator().manual_seed(0))


def causal_model(block: str, layers: str) -> Any:
    from openxlstm.hf import OpenXLSTMConfig, OpenXLSTMForCausalLM

    torch.manual_seed(0)
    options: dict[str, Any] = {"embedding_dim": 16, "num_heads": 2, "block": block}
    return OpenXLSTMForCausalLM(OpenXLSTMConfig(vocab_size=V, layers=layers, **options))


def greedy(model: Any, **options: Any) -> Tensor:
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model.generate(**inputs, max_new_tokens=12, do_sample=False, **options)


@pytest.mark.parametrize("block", BLOCKS)
def test_lora(block: str) -> None:
    """Every adapter learns and counts, in generation with a cache, without one, and merged."""
    options = dict(BLOCKS[block])
    base = causal_model(block, options.pop("layers"))
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    model = peft.get_peft_model(base, config)
    model(input_ids=ids, labels=ids).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) >= 12
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    model.eval()
    text = greedy(model)
    assert torch.equal(greedy(model, use_cache=False), text)
    ours = model.base_model.model.language_model
    decoder = ours.decoder(ours.initial_state(2))
    assert "is of class" in (decoder.fallback_reason or "")
    logits = [decoder.step(ids[:, t]) for t in range(7)]
    assert torch.equal(logits[-1].argmax(-1), text[:, 7])
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.equal(greedy(merged), text)


def test_prompt_tuning() -> None:
    model = causal_model("paper", "ms")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(model, config)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    (prompt,) = (p for p in model.parameters() if p.requires_grad)
    assert prompt.grad is not None
    assert prompt.grad.abs().sum() > 0
    model.eval()
    assert torch.equal(greedy(model), greedy(model, use_cache=False))


@pytest.mark.parametrize("block", BLOCKS)
def test_offloaded_weights(block: Any) -> None:
    """accelerate keeps them elsewhere, and brings each module's when it is called."""
    config = ModelConfig(
        vocab_size=V, embedding_dim=16, num_heads=2, layers=BLOCKS[block]["layers"], block=block
    )
    torch.manual_seed(0)
    model = LanguageModel(config).eval()
    expected, state = model(ids)
    after, _ = model(ids[:, :1], state)
    accelerate.cpu_offload(model, execution_device="cpu")
    assert model.head.weight.is_meta
    logits, _ = model(ids, model.initial_state(2))
    torch.testing.assert_close(logits, expected)
    step = model.decoder(state).step(ids[:, 0])
    torch.testing.assert_close(step, after[:, 0])


@pytest.mark.parametrize("block", ["paper", "large", "bare"])
def test_offloaded_layers(block: Any) -> None:
    layers = "mm" if block == "large" else "ms"
    rnn = XLSTM(3, 16, layers=layers, num_heads=2, block=block, batch_first=True)
    x = torch.randn(2, 5, 3)
    y, state = rnn(x)
    again, _ = rnn(x, state)
    accelerate.cpu_offload(rnn, execution_device="cpu")
    torch.testing.assert_close(rnn(x)[0], y)
    torch.testing.assert_close(rnn(x, state)[0], again)
    torch.testing.assert_close(rnn.stepper(2).step(x[:, 0]), y[:, 0])
