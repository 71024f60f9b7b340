"""The loss of a model on a text, against counting it by hand."""

import math

import pytest
import torch
from torch import Tensor
from train_cases import make_model

from openxlstm.data.batches import Batch, windows_in_order
from openxlstm.data.tokens import Tokens
from openxlstm.lm.model import LanguageModel, evaluation_mode
from openxlstm.train.evaluate import Evaluation, evaluate


@pytest.fixture
def text() -> Tensor:
    return torch.randint(6, (50,))


@pytest.fixture
def model() -> LanguageModel:
    model = make_model(dropout=0.5, embedding_dropout=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def losses(model: LanguageModel, x: Tensor, y: Tensor) -> Tensor:
    """-log p of each token of a row, from an empty state."""
    with torch.no_grad(), evaluation_mode(model):
        p = model(x[None])[0][0].double().softmax(-1)
    return torch.tensor([-math.log(p[t, token]) for t, token in enumerate(y.tolist())])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_windows_each_start_empty(model: LanguageModel, text: Tensor, batch_size: int) -> None:
    """A window for itself; the last, shorter one counts by its tokens."""
    windows = [text[i : i + 9] for i in range(0, 49, 8)]
    expected = torch.cat([losses(model, w[:-1], w[1:]) for w in windows])
    result = evaluate(model, windows_in_order(Tokens(text), window=8, batch_size=batch_size))
    assert result.tokens == len(expected) == 49
    assert result.loss == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize("window", [1, 8, 100])
def test_a_stream_carries_the_state(model: LanguageModel, text: Tensor, window: int) -> None:
    """However it is cut, it is one sequence."""
    expected = losses(model, text[:-1], text[1:]).mean().item()
    batches = windows_in_order(Tokens(text), window, batch_size=1)
    result = evaluate(model, batches, carry_state=True)
    assert result.loss == pytest.approx(expected, rel=1e-5)
    apart = evaluate(model, windows_in_order(Tokens(text), 8, batch_size=1)).loss
    assert abs(apart - expected) > 1e-4, "the two ways differ"


def test_resets_are_heeded(model: LanguageModel, text: Tensor) -> None:
    x, y = text[None, :-1], text[None, 1:]
    reset = torch.zeros_like(x, dtype=torch.bool)
    reset[0, 20] = True
    expected = torch.cat([losses(model, x[0, :20], y[0, :20]), losses(model, x[0, 20:], y[0, 20:])])
    result = evaluate(model, [Batch(x, y, reset)])
    assert result.loss == pytest.approx(expected.mean().item(), rel=1e-5)


def test_tokens_weigh_alike_whatever_their_batch(model: LanguageModel, text: Tensor) -> None:
    long, short = Batch(text[None, :40], text[None, 1:41]), Batch(text[None, :2], text[None, 1:3])
    parts = [evaluate(model, [batch]) for batch in (long, short)]
    both = evaluate(model, [long, short])
    assert both.loss == pytest.approx((40 * parts[0].loss + 2 * parts[1].loss) / 42, rel=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_as_it_was(model: LanguageModel, text: Tensor, training: bool) -> None:
    model.train(training)
    first = evaluate(model, windows_in_order(Tokens(text), 8, 4)).loss
    assert model.training == training
    assert model.stack.training == training
    assert evaluate(model, windows_in_order(Tokens(text), 8, 4)).loss == first, "no dropout inside"
    with pytest.raises(ValueError, match="no batches"):
        evaluate(model, [])
    assert model.training == training


def test_the_mode_is_as_it_was_after_an_error(model: LanguageModel) -> None:
    model.train()
    with pytest.raises(IndexError):
        evaluate(model, [Batch(torch.full((1, 2), 99), torch.zeros(1, 2, dtype=torch.long))])
    assert model.training


def test_nothing_is_left_behind(model: LanguageModel, text: Tensor) -> None:
    before = torch.get_rng_state()
    evaluate(model, windows_in_order(Tokens(text), 8, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_bfloat16_is_summed_in_full(model: LanguageModel) -> None:
    """A sum of thousands of losses has more digits than bfloat16."""
    text = torch.randint(6, (3001,))
    model.bfloat16()
    with torch.no_grad(), evaluation_mode(model):
        logits = model(text[None, :-1])[0][0]
    expected = torch.nn.functional.cross_entropy(logits.double(), text[1:]).item()
    result = evaluate(model, [Batch(text[None, :-1], text[None, 1:])])
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_units() -> None:
    result = Evaluation(loss=2.0, tokens=10)
    assert result.perplexity == pytest.approx(math.e**2)
    assert result.bits_per_character == pytest.approx(2 / math.log(2))
    assert Evaluation(loss=0.0, tokens=1).perplexity == 1
    assert Evaluation(loss=1e4, tokens=1).perplexity == math.inf


def test_bits_are_those_of_a_character() -> None:
    """Of a text of 100 characters in 25 tokens, a token's bits are shared by 4."""
    result = Evaluation(loss=4 * math.log(2), tokens=25, characters_per_token=4.0)
    assert result.bits_per_character == pytest.approx(1.0)
    assert list(result.to_dict()) == ["loss", "perplexity", "bits_per_character", "tokens"]
    assert result.to_dict()["tokens"] == 25
