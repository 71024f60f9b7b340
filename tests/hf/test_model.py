"""What else models of transformers do: hidden states, embeddings, losses, sizes."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openxlstm.hf import OpenXLSTMForCausalLM

MakeModel = Callable[..., OpenXLSTMForCausalLM]
IDS = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))


def gradients(model: OpenXLSTMForCausalLM) -> dict[str, Tensor]:
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@torch.no_grad()
def test_hidden_states(model: OpenXLSTMForCausalLM) -> None:
    """Of the embedding, between blocks, and after the last norm."""
    output = model(IDS, output_hidden_states=True)
    assert [x.shape for x in output.hidden_states] == [(2, 9, 16)] * 3
    x, _ = model.language_model.embed(IDS)
    assert torch.equal(output.hidden_states[0], x)
    between, _ = model.stack.blocks[0](x)  # pyright: ignore[reportCallIssue, reportIndexIssue]
    assert torch.equal(output.hidden_states[1], between)
    logits = model.head(output.hidden_states[2])
    cap = model.language_model.logit_soft_cap
    torch.testing.assert_close(output.logits, cap * torch.tanh(logits / cap) if cap else logits)
    assert model(IDS).hidden_states is None


@torch.no_grad()
def test_inputs(model: OpenXLSTMForCausalLM) -> None:
    logits = model(IDS).logits
    embeds = model.get_input_embeddings()(IDS)
    assert torch.equal(model(inputs_embeds=embeds).logits, logits)
    assert torch.equal(model(IDS, logits_to_keep=2).logits, logits[:, -2:])
    some = model(IDS, logits_to_keep=torch.tensor([3, 0])).logits
    torch.testing.assert_close(some, logits[:, [3, 0]])
    values = model(IDS, return_dict=False, labels=IDS)
    assert torch.equal(values[1], logits)
    generated = model.generate(inputs_embeds=embeds, max_new_tokens=5)
    assert torch.equal(generated, model.generate(IDS, max_new_tokens=5)[:, 9:])


def test_the_loss(model: OpenXLSTMForCausalLM) -> None:
    labels = IDS.clone()
    labels[0, 3:6] = -100
    output = model(IDS, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    scaled = model(IDS, labels=labels, num_items_in_batch=26).loss
    torch.testing.assert_close(scaled, expected * 13 / 26)


def test_training_keeps_no_state_unless_asked(model: OpenXLSTMForCausalLM) -> None:
    assert model(IDS).past_key_values is not None
    model.train()
    assert model(IDS).past_key_values is None
    cache = model(IDS, use_cache=True).past_key_values
    assert cache.state.stack.blocks[0].cell.n.requires_grad
    assert not cache.detach().state.stack.blocks[0].cell.n.requires_grad
    model(IDS, past_key_values=cache.detach(), labels=IDS).loss.backward()


def test_checkpointing(model: OpenXLSTMForCausalLM) -> None:
    """The same gradients, from blocks that are computed again."""
    model.train()
    before = gradients(model)
    model.activation_checkpointing_enable()
    after = gradients(model)
    assert model.stack.recompute_blocks
    assert before.keys() == after.keys()
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient)
    model.eval()
    model(IDS)
    assert not model.stack.recompute_blocks


@torch.no_grad()
def test_more_tokens(model: OpenXLSTMForCausalLM) -> None:
    before = model(IDS).logits
    model.resize_token_embeddings(13, mean_resizing=False)
    assert model.config.vocab_size == model.language_model.config.vocab_size == 13
    assert model.get_output_embeddings().weight.shape == (13, 16)
    tied = model.config.tie_word_embeddings
    assert (model.head.weight is model.token_embedding.weight) == tied
    after = model(IDS).logits
    torch.testing.assert_close(after[..., :11], before)
    ids = torch.tensor([[12, 1, 11]])
    assert torch.equal(model.language_model(ids)[0], model(ids).logits)
    output = model.generate(ids, max_new_tokens=4)
    assert output.shape == (1, 7)


def test_ties(make_model: MakeModel) -> None:
    model = make_model("tied")
    model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())
    model.tie_weights()
    assert model.head.weight is model.token_embedding.weight


@torch.no_grad()
def test_copies(model: OpenXLSTMForCausalLM) -> None:
    """A copy shares nothing, and its parts are those that it computes with."""
    logits, other = model(IDS).logits, copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.zero_()
    assert torch.equal(model(IDS).logits, logits)
    assert not other(IDS).logits.any()
    assert not other.language_model(IDS)[0].any()


def test_names_are_ours(model: OpenXLSTMForCausalLM) -> None:
    assert list(model.state_dict()) == list(model.language_model.state_dict())


@pytest.mark.parametrize("kind", ["paper", "large"])
def test_the_backward_pass_is_ours(kind: str, make_model: MakeModel) -> None:
    model = make_model(kind)
    found = gradients(model)
    model.zero_grad()
    logits, _ = model.language_model(IDS)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    for name, parameter in model.language_model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad)
