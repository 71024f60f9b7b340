"""What holds of every language model, whatever its weights."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_cases import make_model
from tolerances import assert_close
from torch import Tensor, nn

from openxlstm import states
from openxlstm.lm.model import LanguageModel
from openxlstm.ops.native import backend as native
from openxlstm.states import MLSTMState, ModelState, SLSTMState

Models = dict[str, LanguageModel]

KINDS = {
    "m": {"layers": "m"},
    "s": {"layers": "s"},
    "msm": {"layers": "msm"},
    "large": {"layers": "mm", "block": "large"},
}
LAYERS = list(KINDS)
B, T = 3, 12
seeds = st.integers(0, 2**32 - 1)
layer_choices = st.sampled_from(LAYERS)


@pytest.fixture(scope="module")
def models() -> Models:
    """A model for each of KINDS; the tests that share them leave them as they are."""
    return {name: make_model(**options) for name, options in KINDS.items()}


def random_ids(seed: int = 0, shape: tuple[int, int] = (B, T)) -> Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def random_reset(seed: int) -> Tensor:
    return torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.3


def content(state: ModelState) -> list[Tensor]:
    """What a state means: C, c and n without their gauge m."""
    parts: list[Tensor] = [state.position]
    for conv, cell in state.stack.blocks:
        parts += [] if conv is None else [conv.x]
        scale = cell.m.exp()
        if isinstance(cell, MLSTMState):
            parts += [cell.C * scale[..., None, None], cell.n * scale[..., None]]
        else:
            parts += [cell.h, cell.c * scale, cell.n * scale]
    return parts


def assert_same(actual: ModelState, expected: ModelState) -> None:
    for index, parts in enumerate(zip(content(actual), content(expected), strict=True)):
        assert_close(parts[0].double(), parts[1].double(), f"state {index}")


def in_pieces(
    model: LanguageModel, ids: Tensor, cuts: Sequence[int], reset: Tensor | None = None
) -> tuple[Tensor, ModelState]:
    """Runs a sequence cut before the given steps, the state handed on from piece to piece."""
    state, logits = None, []
    for start, end in pairwise([0, *cuts, ids.shape[1]]):
        mask = None if reset is None else reset[:, start:end]
        piece, state = model(ids[:, start:end], state, mask)
        logits.append(piece)
    assert state is not None
    return torch.cat(logits, dim=1), state


# ---- time -------------------------------------------------------------------------------------


@given(layers=layer_choices, seed=seeds, cuts=st.sets(st.integers(1, T - 1)), mask=st.booleans())
def test_pieces_equal_the_whole(
    models: Models, layers: str, seed: int, cuts: set[int], mask: bool
) -> None:
    model, ids = models[layers], random_ids(seed)
    reset = random_reset(seed) if mask else None
    logits, state = model(ids, reset=reset)
    cut_logits, cut_state = in_pieces(model, ids, sorted(cuts), reset)
    assert_close(cut_logits, logits, "logits")
    assert_same(cut_state, state)


@pytest.mark.parametrize(
    ("layers", "dtype"), [*((name, torch.float64) for name in LAYERS), ("msm", torch.float32)]
)
def test_steps_equal_the_sequence(models: Models, layers: str, dtype: torch.dtype) -> None:
    model, ids = copy.deepcopy(models[layers]).to(dtype), random_ids(shape=(2, 70))
    logits, _ = models[layers](ids)
    step_logits, state = in_pieces(model, ids, range(1, 70))
    assert step_logits.dtype == dtype
    assert_close(step_logits, logits, "logits")
    assert state.position.tolist() == [70, 70]


@given(layers=layer_choices, seed=seeds, cut=st.integers(1, T - 1))
def test_the_future_is_not_seen(models: Models, layers: str, seed: int, cut: int) -> None:
    ids = random_ids(seed)
    changed = ids.clone()
    changed[:, cut:] = (changed[:, cut:] + 1) % 11
    before, after = (models[layers](x)[0] for x in (ids, changed))
    assert_close(after[:, :cut], before[:, :cut], "what came before")
    assert (after[:, cut] - before[:, cut]).abs().max() > 1e-6


@given(layers=layer_choices, seed=seeds)
def test_the_past_is_seen(models: Models, layers: str, seed: int) -> None:
    """The first token still matters at the last step, far beyond the convolution."""
    ids = random_ids(seed)
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 11
    before, after = (models[layers](x)[0] for x in (ids, changed))
    assert (after[:, -1] - before[:, -1]).abs().max() > 1e-6


@given(layers=layer_choices, seed=seeds)
def test_a_reset_starts_a_new_sequence(models: Models, layers: str, seed: int) -> None:
    model, ids, reset = models[layers], random_ids(seed), random_reset(seed)
    logits, state = model(ids, reset=reset)
    for row in range(B):
        starts = sorted({0, *reset[row].nonzero().flatten().tolist()})
        for start, end in pairwise([*starts, T]):
            alone, last = model(ids[row : row + 1, start:end])
            assert_close(logits[row : row + 1, start:end], alone, f"row {row} from {start}")
            if end == T:
                assert_same(states.select(state, [row]), last)


@pytest.mark.parametrize("layers", LAYERS)
def test_a_reset_at_the_start_drops_the_state(models: Models, layers: str) -> None:
    model, ids = models[layers], random_ids()
    _, old = model(random_ids(1))
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[1, 0] = True
    logits, _ = model(ids, old, reset)
    assert_close(logits[1], model(ids)[0][1], "the row that was reset")
    assert_close(logits[::2], model(ids, old)[0][::2], "the others")


# ---- batch ------------------------------------------------------------------------------------


@given(layers=layer_choices, seed=seeds, row=st.integers(0, B - 1))
def test_samples_do_not_see_each_other(models: Models, layers: str, seed: int, row: int) -> None:
    model, ids = models[layers], random_ids(seed)
    logits, state = model(ids)
    alone, alone_state = model(ids[row : row + 1])
    assert_close(logits[row : row + 1], alone, "logits")
    assert_same(state.select([row]), alone_state)


@given(layers=layer_choices, seed=seeds, order=st.permutations(range(B)))
def test_a_permuted_batch_is_permuted(
    models: Models, layers: str, seed: int, order: list[int]
) -> None:
    model, ids, reset = models[layers], random_ids(seed), random_reset(seed)
    _, start = model(random_ids(seed + 1))
    logits, state = model(ids, start, reset)
    moved, moved_state = model(ids[order], start.select(order), reset[order])
    assert_close(moved, logits[order], "logits")
    assert_same(moved_state, state.select(order))


# ---- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
def test_none_is_the_initial_state(models: Models, layers: str) -> None:
    model, ids = models[layers], random_ids()
    empty = model.initial_state(B)
    logits, state = model(ids, empty)
    assert torch.equal(logits, model(ids)[0])
    assert_same(state, model(ids)[1])
    assert not [part for part in states.tensors(empty) if part.any()], "nothing writes into it"
    shapes = [part.shape for part in states.tensors(empty)]
    assert shapes == [part.shape for part in states.tensors(state)]


def test_states_of_different_batches_can_be_joined(models: Models) -> None:
    """What serving several people at once needs."""
    model = models["msm"]
    runs = [model(random_ids(n, (1, n + 1)))[1] for n in range(3)]
    joined = states.stack(runs)
    assert joined.position.tolist() == [1, 2, 3]
    logits, after = model(random_ids(shape=(3, 4)), joined)
    for row, state in enumerate(runs):
        alone, alone_after = model(random_ids(shape=(3, 4))[row : row + 1], state)
        assert_close(logits[row : row + 1], alone, f"logits of row {row}")
        assert_same(after.select([row]), alone_after)


@pytest.mark.parametrize("layers", LAYERS)
def test_gradients_flow_through_the_state_until_it_is_detached(models: Models, layers: str) -> None:
    """Of the second half of a sequence: the same in two calls as in one."""
    model, ids = models[layers], random_ids()
    weights = list(model.parameters())

    def gradients(second_half: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(second_half.square().sum(), weights))

    _, state = model(ids[:, :5])
    assert all(part.grad_fn for part in states.tensors(state) if part.is_floating_point())
    whole = gradients(model(ids)[0][:, 5:])
    through = gradients(model(ids[:, 5:], state)[0])
    for (name, _), ours, theirs in zip(model.named_parameters(), through, whole, strict=True):
        assert_close(ours, theirs, name)

    cut = state.detach()
    assert not any(part.requires_grad for part in states.tensors(cut))
    assert_same(cut, state)
    without = gradients(model(ids[:, 5:], cut)[0])
    assert (without[0] - whole[0]).abs().max() > 1e-6


def test_a_state_moves_between_dtypes(models: Models) -> None:
    model = copy.deepcopy(models["msm"])
    _, state = model(random_ids())
    single = model.float()(random_ids(1), state.to(torch.float32))
    double = models["msm"](random_ids(1), state)
    assert single[1].position.dtype == torch.int64
    assert_close(single[0], double[0])


# ---- positions --------------------------------------------------------------------------------


def spy_on_positions(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[list]:
    """The rows of the position embedding that each call reads."""
    rows: list[list] = []
    assert isinstance(model.position_embedding, nn.Embedding)
    forward = model.position_embedding.forward

    def read(position: Tensor) -> Tensor:
        rows.append(position.tolist())
        return forward(position)

    monkeypatch.setattr(model.position_embedding, "forward", read)
    return rows


def test_the_last_position_serves_all_later_ones(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = spy_on_positions(models["m"], monkeypatch)
    models["m"](random_ids(shape=(1, 9)))
    assert rows == [[[0, 1, 2, 3, 4, 5, 5, 5, 5]]]


def test_positions_count_over_calls_and_restart_at_a_reset(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["m"]
    rows = spy_on_positions(model, monkeypatch)
    ids = random_ids(shape=(2, 4))
    reset = torch.zeros(2, 4, dtype=torch.bool)
    reset[0, 2] = reset[1, 1] = reset[1, 3] = True
    _, state = model(ids[:, :2])
    _, state = model(ids, state, reset)
    assert state.position.tolist() == [2, 1]
    _, state = model(ids[:, :1], state)
    assert rows == [
        [[0, 1], [0, 1]],
        [[2, 3, 0, 1], [2, 0, 1, 0]],
        [[2], [1]],
    ]
    assert state.position.tolist() == [3, 2]


def test_without_positions_only_what_was_read_counts() -> None:
    model = make_model(num_positions=0)
    assert model.position_embedding is None
    assert model(random_ids())[1].position.tolist() == [T] * B


def test_the_embedding_of_the_position_is_added() -> None:
    model, ids = make_model(), random_ids(shape=(1, 8))
    assert model.position_embedding is not None
    place = torch.arange(8).clamp(max=5)
    x = model.token_embedding.weight[ids] + model.position_embedding.weight[place]
    expected = model.stack(x)[0] @ model.head.weight.T
    assert_close(model(ids)[0], expected)


def test_logits_of_large_blocks_are_capped() -> None:
    free = make_model(**KINDS["large"], logit_soft_cap=0.0)
    capped = make_model(**KINDS["large"], logit_soft_cap=2.0)
    logits, _ = free(random_ids())
    assert logits.abs().max() > 2
    assert_close(capped(random_ids())[0], 2 * torch.tanh(logits / 2))


# ---- weights ----------------------------------------------------------------------------------


def test_tied_weights_are_one_matrix() -> None:
    model = make_model(tie_weights=True)
    assert model.head.weight is model.token_embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert "token_embedding.weight" in names
    assert "head.weight" not in names
    assert model.double().head.weight is model.token_embedding.weight


@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("layers", LAYERS)
def test_a_gradient_reaches_every_parameter(layers: str, tie_weights: bool) -> None:
    """From the loss alone, and from weights as they are at the start of training."""
    options = {"tie_weights": tie_weights, "bias": True, **KINDS[layers]}
    fresh = LanguageModel(make_model(**options).config).double()
    for model in (make_model(**options), fresh):
        logits, _ = model(random_ids(shape=(B, 20)))
        nn.functional.cross_entropy(logits.mT, random_ids(1, (B, 20))).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            if model is not fresh or "gate" not in name:
                assert parameter.grad.abs().max() > 0, name


def test_a_copy_is_independent() -> None:
    model = make_model(tie_weights=True)
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.token_embedding.weight
    before = model(random_ids())[0]
    assert torch.equal(twin(random_ids())[0], before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(model(random_ids())[0], before)


@pytest.mark.parametrize("layers", LAYERS)
def test_bfloat16_keeps_the_cells_in_float32(models: Models, layers: str) -> None:
    model, ids = copy.deepcopy(models[layers]).bfloat16(), random_ids()
    logits, state = model(ids)
    assert logits.dtype == (torch.float32 if layers == "large" else torch.bfloat16)  # capped
    for conv, cell in state.stack.blocks:
        assert (conv is None) == (layers == "large")
        assert conv is None or conv.x.dtype == torch.bfloat16
        assert {part.dtype for part in cell} == {torch.float32}
    empty = states.tensors(model.initial_state(B))
    assert [part.dtype for part in empty] == [part.dtype for part in states.tensors(state)]
    assert_close(logits, models[layers](ids)[0], tolerance=0.05)
    step, _ = model(ids[:, :1], state)  # the state it gives is one that it takes
    assert step.isfinite().all()


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("layers", LAYERS)
def test_autocast_computes_nearly_the_same(
    models: Models, layers: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products in bfloat16 around cells in float32, whichever code runs; and the way back."""
    if backend == "torch":
        monkeypatch.setattr(native, "_MISSING", "no compiler")
    model, ids = copy.deepcopy(models[layers]).float(), random_ids()
    with torch.autocast("cpu", torch.bfloat16):
        logits, state = model(ids)
        step, _ = model(ids[:, :1], state)
    assert {part.dtype for _, cell in state.stack.blocks for part in cell} == {torch.float32}
    assert_close(logits.float(), models[layers](ids)[0], tolerance=0.05)
    step.float().logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.stack.parameters())


def test_float64_is_float64_throughout(models: Models) -> None:
    logits, state = models["msm"](random_ids())
    assert logits.dtype == torch.float64
    kinds = {part.dtype for part in states.tensors(state)}
    assert kinds == {torch.float64, torch.int64}


# ---- dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["dropout", "embedding_dropout"])
@pytest.mark.parametrize("layers", LAYERS)
def test_dropout_is_for_training_alone(layers: str, option: str) -> None:
    model, plain = make_model(**KINDS[layers], **{option: 0.5}), make_model(**KINDS[layers])
    ids = random_ids()
    assert torch.equal(model(ids)[0], plain(ids)[0])
    model.train()
    first, second = model(ids)[0], model(ids)[0]
    assert not torch.allclose(first, second)
    torch.manual_seed(5)
    again = model(ids)[0]
    torch.manual_seed(5)
    assert torch.equal(model(ids)[0], again)


def test_every_sub_layer_drops() -> None:
    """One dropout after each layer and each feed-forward, and one after the embedding."""
    model = make_model(layers="sm", dropout=0.25, embedding_dropout=0.5)
    rates = [part.p for part in model.modules() if isinstance(part, nn.Dropout)]
    assert sorted(rates) == [0.25, 0.25, 0.25, 0.5]


# ---- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (2, 0), (0, 4), (2, 3, 4), ()], ids=str)
def test_ids_must_be_a_batch_of_sequences(models: Models, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ids must be \(B, T\)"):
        models["m"](torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("layers", LAYERS)
def test_a_state_or_reset_of_another_batch_is_refused(models: Models, layers: str) -> None:
    model, ids = models[layers], random_ids()
    with pytest.raises((ValueError, RuntimeError)):
        model(ids, model.initial_state(B + 1))
    with pytest.raises(ValueError, match="reset must"):
        model(ids, reset=torch.zeros(B, T + 1, dtype=torch.bool)[:, :1])


def test_a_state_of_another_depth_is_refused(models: Models) -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        models["msm"](random_ids(), models["m"].initial_state(B))


def test_kinds_of_cells_follow_the_letters(models: Models) -> None:
    kinds = [type(cell) for _, cell in models["msm"].initial_state(1).stack.blocks]
    assert kinds == [MLSTMState, SLSTMState, MLSTMState]
