"""The engine says what recomputing everything for each token would say, and leaves no trace."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from op_cases import needs_native

from openxlstm.config import ModelConfig
from openxlstm.errors import UserError
from openxlstm.generation import engine
from openxlstm.generation.engine import Steps, decode_batch, prefill, step, stream_tokens
from openxlstm.generation.sampling import Sampling, sample
from openxlstm.lm.model import LanguageModel
from openxlstm.ops.native import backend
from openxlstm.states import select, state_bytes

WARM = Sampling(temperature=0.9, top_k=12, top_p=0.95)
GREEDY = Sampling(temperature=0)


def naive(model: Any, prompt: list[int], max_tokens: int, sampling: Sampling, seed: int):
    """The oracle: reads everything from scratch for each token."""
    ids, generator = list(prompt), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(max_tokens):
            logits = model(torch.tensor([ids]))[0][:, -1]
            token = sample(
                logits,
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                generator=generator,
            )
            ids.append(int(token))
    return ids[len(prompt) :]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), WARM])
def test_stream_says_what_recomputing_says(model: Any, sampling: Sampling):
    prompt = [3, 1, 4, 1, 5]
    expected = naive(model, prompt, 40, sampling, seed=11)
    assert list(stream_tokens(model, prompt, max_tokens=40, sampling=sampling, seed=11)) == expected
    assert len(set(expected)) > 1


def test_large_blocks():
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=12, embedding_dim=16, layers="mm", num_heads=2, block="large")
    model = LanguageModel(config).eval()
    said = list(stream_tokens(model, [1, 2, 3], max_tokens=9, sampling=GREEDY, seed=3))
    assert said == naive(model, [1, 2, 3], 9, GREEDY, seed=3)


def test_each_token_reads_one_token(toy: Any):
    assert len(list(stream_tokens(toy, range(7), max_tokens=4, sampling=WARM))) == 4
    assert toy.calls == [(1, 7), (1, 1), (1, 1), (1, 1)]


def test_state_keeps_its_size(model: Any):
    logits, state = prefill(model, torch.tensor([[1, 2]]))
    size = state_bytes(state)
    for _ in range(30):
        logits, state = step(model, logits.argmax(-1), state)
        assert state_bytes(state) == size
    assert state.position.tolist() == [32]


@pytest.mark.parametrize("chunk", [1, 3, 10, 11])
def test_prefill_does_not_depend_on_the_chunk(model: Any, chunk: int):
    ids = torch.randint(17, (3, 10), generator=torch.Generator().manual_seed(0))
    logits, state = prefill(model, ids)
    chunked, chunked_state = prefill(model, ids, chunk=chunk)
    torch.testing.assert_close(chunked, logits, rtol=1e-4, atol=1e-5)
    after = [step(model, ids[:, 0], each)[0] for each in (state, chunked_state)]
    torch.testing.assert_close(*after, rtol=1e-4, atol=1e-5)


def test_prefill_goes_on_from_a_state(model: Any):
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    _, state = prefill(model, ids[:, :2])
    torch.testing.assert_close(
        prefill(model, ids[:, 2:], state)[0], prefill(model, ids)[0], rtol=1e-4, atol=1e-5
    )
    whole = stream_tokens(model, ids[0], max_tokens=20, sampling=WARM, seed=1)
    resumed = stream_tokens(model, ids[0, 2:], max_tokens=20, sampling=WARM, seed=1, state=state)
    assert list(whole) == list(resumed)


def test_last_logits_do_not_keep_the_chunk_in_memory(toy: Any):
    logits, _ = prefill(toy, torch.zeros(1, 500, dtype=torch.long))
    assert logits.untyped_storage().nbytes() == 17 * 4


def test_endless_stream_is_endless_and_lazy(toy: Any):
    stream = stream_tokens(toy, [0], max_tokens=None, sampling=WARM)
    assert not toy.calls
    assert len(list(islice(stream, 300))) == 300


def test_stop_ends_before_the_token(toy: Any):
    whole = list(stream_tokens(toy, [2], max_tokens=50, sampling=WARM, seed=4))
    stop = {whole[20], whole[30]}
    first = min(whole.index(token) for token in stop)
    cut = stream_tokens(toy, [2], max_tokens=50, sampling=WARM, seed=4, stop=stop)
    assert list(cut) == whole[:first]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_prompts_may_be_lists_arrays_or_tensors(toy: Any, kind: Any):
    expected = list(stream_tokens(toy, (1, 2, 3), max_tokens=5, sampling=GREEDY))
    assert list(stream_tokens(toy, kind([1, 2, 3]), max_tokens=5, sampling=GREEDY)) == expected


PROMPTS = [[1, 2, 3], [4], [1, 2, 3], [5, 6, 7, 8, 9, 10], [11, 12, 13]]


def test_batch_rows_do_not_depend_on_each_other(model: Any):
    together = decode_batch(model, PROMPTS, max_tokens=25, sampling=WARM, seed=3)
    for row in range(len(PROMPTS)):
        others = [[0] * (row + 1)] * len(PROMPTS)
        others[row] = PROMPTS[row]
        assert (
            decode_batch(model, others, max_tokens=25, sampling=WARM, seed=3)[row] == together[row]
        )
    assert together[0] != together[2]  # one prompt, two samples


def test_first_row_of_a_batch_is_the_stream(model: Any):
    stream = stream_tokens(model, PROMPTS[0], max_tokens=25, sampling=WARM, seed=3)
    assert decode_batch(model, PROMPTS, max_tokens=25, sampling=WARM, seed=3)[0] == list(stream)


def test_greedy_batch_is_the_greedy_stream_of_each(model: Any):
    streams = [list(stream_tokens(model, p, max_tokens=9, sampling=GREEDY)) for p in PROMPTS]
    assert decode_batch(model, PROMPTS, max_tokens=9, sampling=GREEDY) == streams


def test_stopped_rows_leave_the_batch(toy: Any):
    whole = decode_batch(toy, PROMPTS, max_tokens=60, sampling=WARM, seed=5)
    toy.calls.clear()
    cut = decode_batch(toy, PROMPTS, max_tokens=60, sampling=WARM, seed=5, stop={0, 1})
    for row, cut_row in zip(whole, cut, strict=True):
        first = next((i for i, token in enumerate(row) if token in {0, 1}), len(row))
        assert cut_row == row[:first]
    sizes = [size for size, _ in toy.calls[4:]]  # 4 different prompts are read first
    assert sizes == sorted(sizes, reverse=True)
    assert sizes == [sum(len(row) > i for row in cut) for i in range(len(sizes))]


def test_repeated_prompts_are_read_once(toy: Any):
    decode_batch(toy, [[1, 2, 3, 4]] * 6, max_tokens=2, sampling=WARM)
    assert toy.calls == [(1, 4), (6, 1)]


def test_batch_edges(toy: Any):
    assert decode_batch(toy, [], max_tokens=3, sampling=WARM) == []
    assert decode_batch(toy, PROMPTS, max_tokens=0, sampling=WARM) == [[]] * 5


def test_caller_keeps_gradient_mode_and_training_flags(toy: Any):
    toy.train()
    toy.gru.eval()  # one module may be frozen
    flags = [module.training for module in toy.modules()]

    def unchanged() -> bool:
        still = [module.training for module in toy.modules()] == flags
        return still and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()

    stream = stream_tokens(toy, [1], max_tokens=None, sampling=WARM, seed=1)
    for _ in range(3):
        next(stream)
        assert unchanged()
        toy(torch.tensor([[1]]))[0].sum().backward()  # a training step between two tokens
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    decode_batch(toy, PROMPTS, max_tokens=3, sampling=WARM)
    assert unchanged()

    with torch.no_grad():
        stream = stream_tokens(toy, [1], max_tokens=4, sampling=WARM)
        next(stream)
        assert not torch.is_grad_enabled()


def test_flags_are_put_back_after_an_error(toy: Any, monkeypatch: pytest.MonkeyPatch):
    toy.train()
    monkeypatch.setattr(toy.gru, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prefill(toy, torch.tensor([[1]]))
    assert all(module.training for module in toy.modules())
    assert not torch.is_inference_mode_enabled()


def test_dropout_is_off_while_training(toy: Any):
    expected = list(stream_tokens(toy, [1], max_tokens=20, sampling=GREEDY))
    toy.train()
    assert list(stream_tokens(toy, [1], max_tokens=20, sampling=GREEDY)) == expected


def test_ids_go_where_the_model_is(toy: Any):
    assert engine.device_of(toy.to("meta")).type == "meta"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "no token"), ([3, 17], "the token 17, but the model knows 0 to 16"), ([-1], "token -1")],
)
def test_senseless_prompts_are_an_error_at_once(toy: Any, prompt: list[int], message: str):
    with pytest.raises(UserError, match=message):
        stream_tokens(toy, prompt, max_tokens=1, sampling=WARM)
    with pytest.raises(UserError, match=message):
        decode_batch(toy, [[1], prompt], max_tokens=1, sampling=WARM)


def test_negative_max_tokens_is_an_error_at_once(toy: Any):
    with pytest.raises(UserError, match="max_tokens must be 0 or more, not -1"):
        stream_tokens(toy, [1], max_tokens=-1, sampling=WARM)
    with pytest.raises(UserError, match="max_tokens must be 0 or more, not -1"):
        decode_batch(toy, [[1]], max_tokens=-1, sampling=WARM)


def test_states_can_be_picked_by_row(model: Any):
    """What a server does when a request leaves a batch."""
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    logits, state = prefill(model, ids)
    token = logits.argmax(-1)
    whole, _ = step(model, token, state)
    part, _ = step(model, token[[2, 0]], select(state, [2, 0]))
    torch.testing.assert_close(part, whole[[2, 0]], rtol=1e-4, atol=1e-5)


@pytest.fixture
def calls(real: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of ids that the language model is called with. A hook would count as well, and
    would have the decoder call the model for each step."""
    seen: list[tuple[int, ...]] = []
    embed = type(real).embed
    monkeypatch.setattr(
        type(real), "embed", lambda *given: seen.append(tuple(given[1].shape)) or embed(*given)
    )
    return seen


@pytest.fixture
def no_decoder(real: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the model's decoders call the model for each step."""
    return lambda: monkeypatch.setattr(backend, "missing", lambda: "not wanted here")


@needs_native
def test_a_stream_reads_its_tokens_with_the_decoder(
    real: Any, calls: list[tuple[int, ...]], no_decoder: Callable[[], None]
):
    def stream() -> list[int]:
        return list(stream_tokens(real, [3, 1, 4], max_tokens=40, sampling=WARM, seed=2))

    by_decoder = stream()
    assert calls == [(1, 3)]
    calls.clear()
    no_decoder()
    assert stream() == by_decoder
    assert calls == [(1, 3)] + 39 * [(1, 1)]
    assert len(set(by_decoder)) > 3


@needs_native
def test_a_batch_reads_its_tokens_with_the_decoder(
    real: Any, calls: list[tuple[int, ...]], no_decoder: Callable[[], None]
):
    """Rows that meet a stop token leave it."""

    def batch() -> list[list[int]]:
        return decode_batch(real, PROMPTS, max_tokens=40, sampling=WARM, seed=2, stop={0, 1})

    by_decoder = batch()
    prompts = [(1, 3), (1, 1), (1, 6), (1, 3)]
    assert calls == prompts
    calls.clear()
    no_decoder()
    assert batch() == by_decoder
    assert calls[:4] == prompts
    assert {T for _, T in calls[4:]} == {1}
    assert len({len(row) for row in by_decoder}) > 2


@needs_native
def test_training_between_two_tokens_is_seen(real: Any, no_decoder: Callable[[], None]):
    """By the decoder as by the model itself, whose training flags stay."""
    weights = {name: x.clone() for name, x in real.state_dict().items()}
    real.train()

    def while_training() -> list[int]:
        real.load_state_dict(weights)
        stream = stream_tokens(real, [5], max_tokens=30, sampling=WARM, seed=3)
        tokens = [next(stream) for _ in range(10)]
        with torch.no_grad():
            for parameter in real.parameters():
                parameter.mul_(-0.7)
        tokens += stream
        assert all(module.training for module in real.modules())
        return tokens

    by_decoder = while_training()
    real.load_state_dict(weights)
    untrained = list(stream_tokens(real, [5], max_tokens=30, sampling=WARM, seed=3))
    assert untrained[:10] == by_decoder[:10]
    assert untrained != by_decoder
    no_decoder()
    assert while_training() == by_decoder


@pytest.mark.parametrize("with_decoder", [True, False])
def test_steps_keep_some_rows(real: Any, no_decoder: Callable[[], None], with_decoder: bool):
    if not with_decoder:
        no_decoder()
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    logits, state = prefill(real, ids)
    steps = Steps(real, state)
    token = logits.argmax(-1)
    expected, state = step(real, token, state)
    torch.testing.assert_close(steps.read(token), expected, rtol=1e-4, atol=1e-5)
    steps.keep([2, 0])
    token = expected.argmax(-1)
    expected, _ = step(real, token, state)
    torch.testing.assert_close(steps.read(token[[2, 0]]), expected[[2, 0]], rtol=1e-4, atol=1e-5)
