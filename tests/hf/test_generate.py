"""`generate` of transformers: what it says, and what its cache holds."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from openxlstm.generation.engine import decode_batch
from openxlstm.generation.sampling import Sampling
from openxlstm.hf import OpenXLSTMCache, OpenXLSTMForCausalLM
from openxlstm.ops.native import backend

MakeModel = Callable[..., OpenXLSTMForCausalLM]
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


def batch(prompts: list[list[int]], side: str = "left") -> dict[str, torch.Tensor]:
    T = max(map(len, prompts))
    pads = [[0] * (T - len(prompt)) for prompt in prompts]
    rows = zip(pads, prompts, strict=True)
    ids = [pad + prompt if side == "left" else prompt + pad for pad, prompt in rows]
    ones = [[1] * len(prompt) for prompt in prompts]
    rows = zip(pads, ones, strict=True)
    mask = [pad + one if side == "left" else one + pad for pad, one in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def expected(model: OpenXLSTMForCausalLM, tokens: int) -> list[list[int]]:
    greedy = Sampling(temperature=0.0, vocab_size=11)
    return decode_batch(model.language_model, PROMPTS, max_tokens=tokens, sampling=greedy, seed=0)


@pytest.mark.parametrize(
    ("side", "options"), [("left", {}), ("left", {"use_cache": False}), ("right", {})]
)
def test_greedy(side: str, options: dict[str, Any], model: OpenXLSTMForCausalLM) -> None:
    """As ours, each prompt for itself; with a cache the padding may be at the right, too."""
    inputs = batch(PROMPTS, side)
    output = model.generate(**inputs, max_new_tokens=12, **options)
    assert output[:, 5:].tolist() == expected(model, 12)
    for prompt, tokens in zip(PROMPTS, expected(model, 12), strict=True):
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=12, **options)
        assert alone[0].tolist() == prompt + tokens


def test_no_decoder(model: OpenXLSTMForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no native step, forward does the same."""
    natively = model.generate(**batch(PROMPTS), max_new_tokens=12)
    monkeypatch.setattr(backend, "missing", lambda: "not wanted here")
    assert torch.equal(model.generate(**batch(PROMPTS), max_new_tokens=12), natively)


def test_sampling(model: OpenXLSTMForCausalLM) -> None:
    prompt = torch.tensor([PROMPTS[0]])
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        texts.append(
            model.generate(
                prompt, max_new_tokens=9, do_sample=True, top_k=5, num_return_sequences=4
            )
        )
    assert torch.equal(*texts)
    assert len({tuple(row) for row in texts[0].tolist()}) > 1


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 2}])
def test_beams(options: dict[str, Any], model: OpenXLSTMForCausalLM) -> None:
    """Reordered states are those of the sequences: as without any cache."""
    found = [
        model.generate(
            **batch(PROMPTS), max_new_tokens=7, num_beams=3, use_cache=cache,
            output_scores=True, return_dict_in_generate=True, **options,
        )
        for cache in (True, False)
    ]  # fmt: skip
    assert torch.equal(found[0].sequences, found[1].sequences)
    torch.testing.assert_close(found[0].sequences_scores, found[1].sequences_scores)


def test_going_on(model: OpenXLSTMForCausalLM) -> None:
    """From the cache that a call returned, with all that was said or with what is new alone."""
    inputs = batch(PROMPTS)
    first = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True)
    more = torch.tensor([[1, 2], [3, 4], [5, 6]])
    whole = torch.cat([first.sequences, more], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, 6, dtype=torch.long)], dim=1)
    anew = model.generate(whole, attention_mask=mask, max_new_tokens=5)
    for ids in (whole, whole[:, 8:]):
        cache = copy.deepcopy(first.past_key_values)
        assert cache.get_seq_length() == 8
        output = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=5)
        assert torch.equal(output[:, -5:], anew[:, -5:])
        assert cache.get_seq_length() == whole.shape[1] + 4


def test_chunks_of_a_prompt(model: OpenXLSTMForCausalLM) -> None:
    inputs = batch(PROMPTS)
    output = model.generate(
        **inputs, max_new_tokens=5, prefill_chunk_size=2, past_key_values=OpenXLSTMCache()
    )
    assert torch.equal(output, model.generate(**inputs, max_new_tokens=5))


@torch.no_grad()
def test_weights_that_change(make_model: MakeModel) -> None:
    """Between two steps, in place and by others: the next step uses them."""
    model = make_model()
    cache = model(torch.tensor([[1, 2, 3]])).past_key_values
    step = {"input_ids": torch.tensor([[4]]), "use_cache": True}
    model(**step, past_key_values=cache)
    state = cache.state
    model.head.weight.mul_(2)
    forward, _ = model.language_model(step["input_ids"], state)
    logits = model(**step, past_key_values=OpenXLSTMCache(state)).logits
    torch.testing.assert_close(logits, forward, rtol=1e-4, atol=1e-4)
    copied = copy.deepcopy(cache)
    model.double()
    model(**step, past_key_values=OpenXLSTMCache(model.language_model.initial_state(1)))
    model.float()
    torch.testing.assert_close(model(**step, past_key_values=copied).logits, logits)


@torch.no_grad()
def test_caches(model: OpenXLSTMForCausalLM) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    step = {"input_ids": torch.tensor([[7], [8]]), "use_cache": True}
    cache = model(ids).past_key_values
    assert (cache.get_seq_length(), cache.batch_size, len(cache)) == (3, 2, 2)
    logits = model(**step, past_key_values=copy.deepcopy(cache)).logits
    for same in (pickle.loads(pickle.dumps(cache)), copy.copy(cache), cache.detach()):
        assert torch.equal(model(**step, past_key_values=same).logits, logits)
    model(**step, past_key_values=cache)  # by the decoder, where there is one
    for other in (cache, OpenXLSTMCache(cache.state, cache.get_seq_length())):
        kept = copy.deepcopy(other)
        kept.batch_repeat_interleave(2)
        kept.batch_select_indices(torch.tensor([3, 0]))
        kept.reorder_cache(torch.tensor([1, 0]))
        found = model(**step, past_key_values=kept).logits
        expected = model(**step, past_key_values=copy.deepcopy(other)).logits
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="cannot forget its last tokens"):
        cache.crop(-1)
    cache.crop(0)
    cache.reset()
    assert torch.equal(model(ids, past_key_values=cache).logits, model(ids).logits)


def test_what_cannot_be(make_model: MakeModel) -> None:
    model, ids = make_model(), torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        model.generate(ids, max_new_tokens=3, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match=r"must be an openxlstm\.hf\.OpenXLSTMCache.*DynamicCache"):
        model(ids, past_key_values=DynamicCache())
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match="is of 1 sequences and the input of 2"):
        model(torch.tensor([[1, 2], [3, 4]]), past_key_values=cache)
    with pytest.raises(IndexError):
        model(torch.tensor([[11]]), past_key_values=cache)
    with pytest.raises(ValueError, match="give either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match=r"input_ids must be \(B, T\) with T ≥ 1, not \(1, 0\)"):
        model(ids[:, :0])
