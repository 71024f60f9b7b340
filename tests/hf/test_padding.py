"""Padding, at either side, changes neither logits nor states: what Hugging Face's xLSTM lacks."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openxlstm.hf import OpenXLSTMCache, OpenXLSTMForCausalLM
from openxlstm.states import ModelState, select, tensors
from openxlstm.states import stack as join

MakeModel = Callable[..., OpenXLSTMForCausalLM]

KINDS = ["paper", "tied", "large"]
PAD = -7
"""What stands in the padding: it need not even be a token."""

lengths_of_rows = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=4)


def padded(rows: list[Tensor], lefts: list[int]) -> tuple[Tensor, Tensor]:
    """A batch of rows, so much padding before each, and its mask."""
    T = max(len(row) + left for row, left in zip(rows, lefts, strict=True))
    ids, mask = torch.full((len(rows), T), PAD), torch.zeros(len(rows), T, dtype=torch.long)
    for row, left, line, real in zip(rows, lefts, ids, mask, strict=True):
        line[left : left + len(row)] = row
        real[left : left + len(row)] = 1
    return ids, mask


def assert_same_state(found: ModelState, expected: ModelState) -> None:
    """The same memory, whatever the gauge m (`openxlstm.states.MLSTMState`)."""
    for a, b in zip(tensors(canonical(found)), tensors(canonical(expected)), strict=True):
        torch.testing.assert_close(a, b)


def canonical(state: ModelState) -> list[list[Tensor]]:
    parts = [[state.position]]
    for block in state.stack.blocks:
        conv, cell = block
        parts.append([] if conv is None else [conv.x])
        values = cell._asdict()
        m = values.pop("m")
        h = values.pop("h", None)
        for value in values.values():
            scale = m.exp()
            parts[-1].append(value * scale.view(*scale.shape, *(1,) * (value.dim() - m.dim())))
        if h is not None:
            parts[-1].append(h)
    return parts


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@given(sizes=lengths_of_rows, seed=st.integers(0, 99))
def test_padding_changes_nothing(
    kind: str, sizes: list[tuple[int, int]], seed: int, make_model: MakeModel
) -> None:
    model = make_model(kind).double()
    random = torch.Generator().manual_seed(seed)
    rows = [torch.randint(11, (length,), generator=random) for length, _ in sizes]
    lefts = [left for _, left in sizes]
    ids, mask = padded(rows, lefts)
    output = model(ids, attention_mask=mask)
    alone = [model(row[None]) for row in rows]
    for place, (row, left, one) in enumerate(zip(rows, lefts, alone, strict=True)):
        found = output.logits[place, left : left + len(row)]
        torch.testing.assert_close(
            found,
            one.logits[0],
        )
        torch.testing.assert_close(output.logits[place, -1], one.logits[0, -1])
    states = [one.past_key_values.state for one in alone]
    assert_same_state(output.past_key_values.state, join(states))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@given(sizes=lengths_of_rows, more=lengths_of_rows, empty=st.booleans(), seed=st.integers(0, 99))
def test_a_batch_that_goes_on(
    kind: str,
    sizes: list[tuple[int, int]],
    more: list[tuple[int, int]],
    empty: bool,
    seed: int,
    make_model: MakeModel,
) -> None:
    """With the mask of all columns or of the new ones; a row may have nothing in a call."""
    model = make_model(kind).double()
    count = min(len(sizes), len(more))
    random = torch.Generator().manual_seed(seed)
    first, second = (
        [torch.randint(11, (length,), generator=random) for length, _ in part[:count]]
        for part in (sizes, more)
    )
    if empty:
        first[0], second[-1] = first[0][:0], second[-1][:0]
    ids, mask = padded(first, [left for _, left in sizes[:count]])
    more_ids, more_mask = padded(second, [left for _, left in more[:count]])
    if not ids.shape[1] or not more_ids.shape[1]:
        return
    cache = model(ids, attention_mask=mask).past_key_values
    other = OpenXLSTMCache(cache.state, cache.get_seq_length())
    both = torch.cat([mask, more_mask], dim=1)
    output = model(more_ids, attention_mask=both, past_key_values=cache)
    same = model(more_ids, attention_mask=more_mask, past_key_values=other)
    assert torch.equal(output.logits, same.logits)
    for place in range(count):
        row = torch.cat([first[place], second[place]])
        if not len(row):
            assert all(not part.any() for part in tensors(select(cache.state, [place])))
            continue
        alone = model(row[None])
        assert_same_state(select(cache.state, [place]), alone.past_key_values.state)
        left, length = more[place][1], len(second[place])
        torch.testing.assert_close(
            output.logits[place, left : left + length],
            alone.logits[0, len(row) - length :],
        )


def test_gradients_do_not_see_padding(model: OpenXLSTMForCausalLM) -> None:
    model.double()
    rows = [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6, 7, 8]), torch.tensor([9])]
    ids, mask = padded(rows, [1, 0, 3])
    embeds = model.token_embedding(ids.clamp(min=0)).detach()
    embeds[mask == 0] = torch.nan
    embeds.requires_grad_()
    loss = model(inputs_embeds=embeds, attention_mask=mask, labels=ids.clamp(min=0)).loss
    loss.backward()
    assert embeds.grad is not None
    assert not embeds.grad[mask == 0].any()
    assert embeds.grad[0, 1].any()
    counts = [len(row) - 1 for row in rows]
    losses = [model(row[None], labels=row[None]).loss for row in rows if len(row) > 1]
    expected = sum(n * one for n, one in zip([n for n in counts if n], losses, strict=True))
    torch.testing.assert_close(loss * sum(counts), expected)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 0, 1, 1]], r"not within: row 0 has 2 parts"),
        ([[1, 1, 1]], r"must be \(1, 4\) not \(1, 3\)"),
        ([[1, 1, 1, 1, 1]], r"must be \(1, 4\) not \(1, 5\)"),
        ([1, 1, 1, 1], r"must be \(1, 4\) not \(4,\)"),
    ],
)
def test_masks_that_make_no_sense(mask: list[list[int]], words: str, make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match=words):
        make_model()(torch.tensor([[1, 2, 3, 4]]), attention_mask=torch.tensor(mask))


@torch.no_grad()
def test_packed_documents(model: OpenXLSTMForCausalLM) -> None:
    """Where positions start again, so does the state, as if each document were alone."""
    model.double()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 1, 2, 3, 4]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 0, 1]])
    packed = model(ids, position_ids=positions).logits
    for row, parts in ((0, [(0, 3), (3, 7)]), (1, [(0, 5), (5, 7)])):
        for start, end in parts:
            alone = model(ids[row : row + 1, start:end]).logits[0]
            torch.testing.assert_close(
                packed[row, start:end],
                alone,
            )
    with pytest.raises(ValueError, match=r"position_ids must be \(2, 7\)"):
        model(ids, position_ids=positions[:, :3])
