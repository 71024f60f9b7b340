"""The decoder says, token by token, what the model says, and minds whose state is whose."""

import copy
import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_cases import needs_native, run_with_isa
from tolerances import assert_close
from torch import Tensor, nn

from openxlstm.config import ModelConfig
from openxlstm.lm.model import LanguageModel
from openxlstm.nn.decoder import Decoder
from openxlstm.ops.native import backend as native
from openxlstm.states import ModelState, map_state, select, tensors

pytestmark = needs_native
V = 17


def make_model(**options: Any) -> LanguageModel:
    """A float32 model of odd sizes, whose every parameter is random."""
    defaults: dict[str, Any] = {"embedding_dim": 36, "layers": "ms", "num_heads": 4}
    torch.manual_seed(0)
    model = LanguageModel(ModelConfig.from_options(**defaults | options, vocab_size=V)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def random_ids(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def read(model: LanguageModel, ids: Tensor) -> ModelState:
    """The state after ids (B, T), made as generation makes it."""
    with torch.inference_mode():
        return model(ids)[1]


def decoder_of(model: LanguageModel, state: ModelState) -> Decoder:
    decoder = model.decoder(state)
    assert decoder.fallback_reason is None
    return decoder


def check_decoder(B: int, steps: int = 6, **options: Any) -> None:
    """Logits of each step and the states after them, beside the same model in float64."""
    model = make_model(**options)
    truth = copy.deepcopy(model).double()
    ids = random_ids(B, 5 + steps)
    state = read(truth, ids[:, :5])
    decoder = decoder_of(model, state.to(torch.float32))
    with torch.no_grad():
        for t in range(5, 5 + steps):
            expected, state = truth(ids[:, t : t + 1], state)
            assert_close(decoder.step(ids[:, t]), expected[:, 0], f"logits {t}", tolerance=5e-5)
    for i, parts in enumerate(zip(tensors(decoder.state), tensors(state), strict=True)):
        assert_close(*parts, f"state {i}", tolerance=5e-5 if parts[0].is_floating_point() else 0.0)


def same_state(state: ModelState, expected: ModelState) -> bool:
    return all(map(torch.equal, tensors(state), tensors(expected)))


def check_bfloat16(B: int, steps: int = 6, **options: Any) -> None:
    """A decoder of weights in bfloat16 computes in float32: beside the same weights in float64."""
    model = make_model(**options).bfloat16()
    truth, ids = copy.deepcopy(model).double(), random_ids(B, steps)
    decoder, state = decoder_of(model, model.initial_state(B)), truth.initial_state(B)
    with torch.no_grad():
        for t in range(steps):
            expected, state = truth(ids[:, t : t + 1], state)
            assert_close(decoder.step(ids[:, t]), expected[:, 0], f"logits {t}", tolerance=5e-5)
    for part, like in zip(tensors(decoder.state), tensors(model.initial_state(B)), strict=True):
        assert part.dtype == like.dtype


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"bias": True},
    "positions": {"num_positions": 7},
    "one position": {"num_positions": 1},
    "tied": {"tie_weights": True},
    "no convolution": {"mlstm_conv_kernel_size": 0, "slstm_conv_kernel_size": 0},
    "convolution of 1": {"mlstm_conv_kernel_size": 1, "slstm_conv_kernel_size": 1},
    "convolution of 2": {"mlstm_conv_kernel_size": 2, "slstm_conv_kernel_size": 2},
    "convolution of 8": {"mlstm_conv_kernel_size": 8, "slstm_conv_kernel_size": 8},
    "no feed-forward": {"slstm_ff_factor": 0.0},
    "exp gate": {"slstm_forget_gate": "exp"},
    "eps": {"mlstm_eps": 0.1},
    "no final norm": {"final_norm": False},
    "wide blocks": {"mlstm_qkv_block_size": 8},
    "no blocks": {"mlstm_qkv_block_size": 1},
    "three heads": {"num_heads": 3, "mlstm_proj_factor": 5.0},
    "one head": {"num_heads": 1, "embedding_dim": 33},
    "a limit to logits": {"logit_soft_cap": 0.3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("layers", ["m", "s", "ms", "sm"])
@pytest.mark.parametrize("B", [1, 3])
def test_steps_are_the_models(layers: str, B: int, options: dict[str, Any]) -> None:
    check_decoder(B, layers=layers, **options)


LARGE: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases": {"bias": True},
    "positions": {"num_positions": 7},
    "tied": {"tie_weights": True},
    "no caps": {"gate_soft_cap": 0.0, "logit_soft_cap": 0.0},
    "low caps": {"gate_soft_cap": 0.7, "logit_soft_cap": 0.3},
    "eps": {"eps": 0.1, "norm_eps": 0.1},
    "no final norm": {"final_norm": False},
    "wide keys": {"qk_dim_factor": 1.0, "v_dim_factor": 0.5},
    "wide values": {"embedding_dim": 32, "qk_dim_factor": 0.25, "v_dim_factor": 9.0},
    "odd widths": {
        "embedding_dim": 36,
        "num_heads": 3,
        "qk_dim_factor": 0.25,
        "ff_multiple": 7,
    },
    "one head": {"num_heads": 1, "embedding_dim": 33},
}


@pytest.mark.parametrize("options", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("B", [1, 3])
def test_steps_of_large_blocks_are_the_models(B: int, options: dict[str, Any]) -> None:
    defaults = {"block": "large", "embedding_dim": 40}
    check_decoder(B, layers="mm", **defaults | options)


@given(
    B=st.integers(1, 9),
    layers=st.text("m", min_size=1, max_size=3),
    embedding_dim=st.sampled_from([8, 40, 56]),
    num_heads=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    num_positions=st.sampled_from([0, 6]),
    tie_weights=st.booleans(),
    eps=st.sampled_from([0.0, 1e-6]),
    qk_dim_factor=st.sampled_from([0.5, 1.0]),
    v_dim_factor=st.sampled_from([0.5, 1.0, 3.0]),
    ff_factor=st.sampled_from([0.5, 2.6667]),
    ff_multiple=st.sampled_from([3, 64]),
    norm_eps=st.sampled_from([1e-6, 0.01]),
    gate_soft_cap=st.sampled_from([0.0, 15.0]),
    logit_soft_cap=st.sampled_from([0.0, 1.0, 30.0]),
    final_norm=st.booleans(),
)
def test_any_mixture_of_options_of_large_blocks(B: int, **options: Any) -> None:
    check_decoder(B, block="large", **options)


@pytest.mark.parametrize("options", LARGE.values(), ids=LARGE)
@pytest.mark.parametrize("B", [1, 3])
def test_large_blocks_in_bfloat16(B: int, options: dict[str, Any]) -> None:
    defaults = {"block": "large", "embedding_dim": 40}
    check_bfloat16(B, layers="mm", **defaults | options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("layers", ["m", "s"])
def test_paper_blocks_in_bfloat16(layers: str, options: dict[str, Any]) -> None:
    check_bfloat16(2, layers=layers, **options)


def test_states_of_large_blocks_in_bfloat16_are_float32() -> None:
    model = make_model(layers="mm", block="large", num_heads=2).bfloat16()
    ids = random_ids(2, 9)
    state = read(model, ids)
    assert {part.dtype for part in tensors(state.stack)} == {torch.float32}
    assert {part.dtype for part in tensors(decoder_of(model, state).state.stack)} == {torch.float32}


@pytest.mark.parametrize("options", [{"block": "large", "num_heads": 2}, {}], ids=str)
def test_a_model_in_bfloat16_reads(options: dict[str, Any]) -> None:
    """As well as its precision lets it, and a decoder goes on from there."""
    model, ids = make_model(layers="mm", **options).bfloat16(), random_ids(2, 40)
    truth = copy.deepcopy(model).double()
    with torch.no_grad():
        logits, state = model(ids[:, :-1])
        expected, _ = truth(ids)
        stepped, _ = model(ids[:, -1:], state)
    scale = expected.std()
    assert (logits - expected[:, :-1]).square().mean().sqrt() < 0.05 * scale
    assert (stepped - expected[:, -1:]).square().mean().sqrt() < 0.1 * scale
    decoded = decoder_of(model, state).step(ids[:, -1])
    assert (decoded - expected[:, -1]).square().mean().sqrt() < 0.1 * scale
    assert logits.dtype == (torch.float32 if options else torch.bfloat16)


@given(
    B=st.integers(1, 9),
    layers=st.text("ms", min_size=1, max_size=3),
    bias=st.booleans(),
    num_positions=st.sampled_from([0, 6]),
    tie_weights=st.booleans(),
    mlstm_conv_kernel_size=st.integers(0, 5),
    slstm_conv_kernel_size=st.integers(0, 5),
    slstm_forget_gate=st.sampled_from(["sigmoid", "exp"]),
    slstm_ff_factor=st.sampled_from([0.0, 1.3]),
    mlstm_eps=st.sampled_from([0.0, 1e-6]),
    num_heads=st.sampled_from([1, 2, 4]),
    final_norm=st.booleans(),
)
def test_any_mixture_of_options(B: int, **options: Any) -> None:
    check_decoder(B, **options)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_every_instruction_set(isa: str) -> None:
    code = (
        "from test_decoder import check_bfloat16, check_decoder\n"
        "for B in (1, 4):\n"
        "    check_decoder(B, layers='smm', bias=True, num_positions=7)\n"
        "    check_decoder(B, layers='mm', bias=True, block='large', embedding_dim=40)\n"
        "    check_bfloat16(B, layers='mm', bias=True, block='large', embedding_dim=40)"
    )
    run_with_isa(isa, code)


def test_a_long_run_stays_with_the_model() -> None:
    check_decoder(2, 300, layers="sm", num_positions=20)


def test_an_empty_state_is_where_a_sequence_starts() -> None:
    model, ids = make_model(num_positions=4), random_ids(2, 3)
    decoder = decoder_of(model, model.initial_state(2))
    whole, _ = copy.deepcopy(model).double()(ids)
    for t in range(3):
        assert_close(decoder.step(ids[:, t]), whole[:, t])
    assert decoder.state.position.tolist() == [3, 3]


@pytest.mark.parametrize(
    "options",
    [{"layers": "ms"}, {"layers": "sm"}, {"layers": "mm", "block": "large", "num_heads": 2}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_do_not_depend_on_their_company(options: dict[str, Any], dtype: torch.dtype) -> None:
    """Not in one bit: a sequence says the same alone as among others."""
    model, ids = make_model(**options, num_positions=4).to(dtype), random_ids(5, 12)
    state = read(model, ids[:, :4])
    together = decoder_of(model, state)
    alone = [decoder_of(model, select(state, [row])) for row in range(5)]
    for t in range(4, 12):
        logits = together.step(ids[:, t])
        for row, decoder in enumerate(alone):
            assert torch.equal(decoder.step(ids[row, t : t + 1])[0], logits[row])
    for row, decoder in enumerate(alone):
        assert same_state(decoder.state, select(together.state, [row]))


@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_some_rows_go_on_as_they_would_have(rows: list[int]) -> None:
    """In any order, and a row may go on twice; the decoder that they come from stays."""
    model, ids = make_model(num_positions=9), random_ids(4, 8)
    every = decoder_of(model, read(model, ids[:, :3]))
    every.step(ids[:, 3])
    some = every.select(rows)
    for t in range(4, 8):
        logits = every.step(ids[:, t])
        assert torch.equal(some.step(ids[rows, t]), logits[rows])
    assert same_state(some.state, select(every.state, rows))


@given(rows=st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_rows_change_places(rows: list[int]) -> None:
    """As those of a beam search do, in the decoder itself."""
    model, ids = make_model(num_positions=9), random_ids(4, 8)
    decoder = decoder_of(model, read(model, ids[:, :3]))
    other = decoder.select(rows)
    decoder.reorder(rows)
    for t in range(3, 8):
        assert torch.equal(decoder.step(ids[:, t]), other.step(ids[:, t]))
    assert same_state(decoder.state, other.state)
    with pytest.raises(ValueError, match="rows must be 4 indices, not 1"):
        decoder.reorder([0])


def test_states_are_nobody_elses() -> None:
    """Neither the one that it was given nor those that it gives away."""
    model, ids = make_model(), random_ids(2, 8)
    state = read(model, ids[:, :3])
    given = [part.clone() for part in tensors(state)]
    decoder, other = decoder_of(model, state), decoder_of(model, state)
    decoder.step(ids[:, 3])
    assert all(map(torch.equal, tensors(state), given))
    taken = decoder.state
    kept = [part.clone() for part in tensors(taken)]
    expected = decoder.step(ids[:, 4]).clone()
    assert all(map(torch.equal, tensors(taken), kept))
    for part in tensors(taken):
        part.fill_(3)
    other.step(ids[:, 3])
    again = other.state
    for part in tensors(again):
        part.fill_(3)
    assert torch.equal(other.step(ids[:, 4]), expected)


def test_a_state_may_lie_anyhow_in_memory() -> None:
    model, ids = make_model(), random_ids(2, 8)
    state = read(model, ids[:, :3])
    turned = map_state(lambda part: part.mT.contiguous().mT if part.dim() > 1 else part, state)
    assert not all(part.is_contiguous() for part in tensors(turned))
    expected = decoder_of(model, state).step(ids[:, 3])
    assert torch.equal(decoder_of(model, turned).step(ids[:, 3]), expected)


def test_a_decoder_can_go_on_where_another_stopped() -> None:
    model, ids = make_model(), random_ids(2, 8)
    first = decoder_of(model, read(model, ids[:, :3]))
    first.step(ids[:, 3])
    second = decoder_of(model, first.state)
    assert torch.equal(second.step(ids[:, 4]), first.step(ids[:, 4]))


@pytest.mark.parametrize(
    "options", [{"layers": "ms"}, {"layers": "sm"}, {"layers": "mm", "block": "large"}], ids=str
)
@pytest.mark.parametrize("tie_weights", [False, True])
def test_training_between_two_steps_is_seen(options: dict[str, Any], tie_weights: bool) -> None:
    options = {
        "bias": True,
        "num_positions": 9,
        "num_heads": 2,
        "tie_weights": tie_weights,
    } | options
    model = make_model(**options).train()
    ids = random_ids(2, 8)
    decoder = decoder_of(model, read(model, ids[:, :3]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for t in range(3, 6):
        state = decoder.state
        stale = decoder_of(copy.deepcopy(model), state).step(ids[:, t]).clone()
        model(ids)[0].square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        logits = decoder.step(ids[:, t])
        truth, wide = copy.deepcopy(model).double(), state.to(torch.float64)
        with torch.no_grad():
            expected, _ = truth(ids[:, t : t + 1], wide)
        assert_close(logits, expected[:, 0], tolerance=5e-5)
        assert not torch.allclose(logits, stale, atol=1e-3)
    other = make_model(**options)
    model.load_state_dict(other.state_dict())
    state = decoder.state
    assert torch.equal(decoder.step(ids[:, 6]), decoder_of(other, state).step(ids[:, 6]))


def test_nothing_is_dropped_while_training() -> None:
    model = make_model(dropout=0.5, embedding_dropout=0.5).train()
    ids = random_ids(2, 2)
    decoders = [decoder_of(model, model.initial_state(2)) for _ in range(2)]
    first, again = (decoder.step(ids[:, 0]) for decoder in decoders)
    assert torch.equal(first, again)
    expected, _ = copy.deepcopy(model).double().eval()(ids[:, :1])
    assert_close(first, expected[:, 0])
    assert model.training


def test_no_graph_is_kept() -> None:
    model, ids = make_model(), random_ids(2, 1)
    _, state = model(ids)
    assert any(part.requires_grad for part in tensors(state))
    decoder = decoder_of(model, state)
    logits = decoder.step(ids[:, 0])
    assert torch.is_grad_enabled()
    assert not logits.requires_grad
    assert not any(part.requires_grad for part in tensors(decoder.state))


def test_logits_are_good_until_the_next_step() -> None:
    model, ids = make_model(), random_ids(2, 2)
    decoder = decoder_of(model, model.initial_state(2))
    logits = decoder.step(ids[:, 0])
    kept = logits.clone()
    later = decoder.step(ids[:, 1])
    assert later.data_ptr() == logits.data_ptr()  # no memory a step
    assert not torch.equal(later, kept)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[1, 2, 3]], ValueError, r"ids must be \(3,\) torch.int64.* not \(1, 3\)"),
        ([1, 2], ValueError, r"ids must be \(3,\) torch.int64.* not \(2,\)"),
        ([1, 2, 3, 4], ValueError, r"ids must be \(3,\) torch.int64.* not \(4,\)"),
        ([], ValueError, r"ids must be \(3,\) torch.int64"),
        (torch.tensor([1, 2, 3], dtype=torch.int32), ValueError, "not .* torch.int32"),
        ([1.0, 2.0, 3.0], ValueError, "not .* torch.float32"),
        ([1, 2, V], IndexError, "a token is not one of the model's"),
        ([-1, 2, 3], IndexError, "a token is not one of the model's"),
        ([1, 2**62, 3], IndexError, "a token is not one of the model's"),
    ],
)
def test_wrong_ids_are_an_error_and_change_nothing(
    ids: Any, error: type[Exception], message: str
) -> None:
    model, right = make_model(), random_ids(3, 4)
    decoder, other = (decoder_of(model, read(model, right[:, :3])) for _ in range(2))
    with pytest.raises(error, match=message):
        decoder.step(torch.as_tensor(ids))
    assert same_state(decoder.state, other.state)
    assert torch.equal(decoder.step(right[:, 3]), other.step(right[:, 3]))


def test_ids_may_have_gaps_in_memory() -> None:
    model, ids = make_model(), random_ids(3, 4)
    strided, dense = (decoder_of(model, model.initial_state(3)) for _ in range(2))
    assert not ids[:, 1].is_contiguous()
    assert torch.equal(strided.step(ids[:, 1]), dense.step(ids[:, 1].contiguous()))


def half_precision(model: LanguageModel) -> None:
    model.head.bfloat16()


def in_columns(model: LanguageModel) -> None:
    model.head.weight.data = model.head.weight.data.T.contiguous().T


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nn.Module.double, "it reads float32 and bfloat16, and a weight is torch.float64"),
        (half_precision, "some weights are torch.float32, and some torch.bfloat16"),
        (lambda model: model.to("meta"), "it runs on the CPU, and a weight is on meta"),
        (in_columns, "a weight is not contiguous"),
    ],
    ids=["float64", "both", "device", "layout"],
)
def test_where_it_cannot_be_native_it_calls_the_model(
    change: Callable[[LanguageModel], Any], message: str
) -> None:
    model, ids = make_model(num_positions=3), random_ids(2, 2)
    decoder = decoder_of(model, model.initial_state(2))
    decoder.step(ids[:, 0])
    change(model)
    assert decoder.fallback_reason == message
    assert model.decoder(model.initial_state(2)).fallback_reason == message
    state = decoder.state
    try:
        with torch.no_grad():
            expected, after = model(ids[:, 1:], state)
    except RuntimeError as error:  # a model that cannot run does not run by steps either
        with pytest.raises(RuntimeError, match=str(error)[:20]):
            decoder.step(ids[:, 1])
        return
    if not expected.is_meta:
        assert torch.equal(decoder.step(ids[:, 1]), expected[:, 0])
        assert same_state(decoder.state, after)


def test_without_the_extension_it_calls_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = make_model(), random_ids(1, 1)
    monkeypatch.setattr(native, "missing", lambda: "no compiler")
    decoder = model.decoder(model.initial_state(1))
    assert decoder.fallback_reason == "no compiler"
    with torch.no_grad():
        assert torch.equal(decoder.step(ids[:, 0]), model(ids)[0][:, 0])


def test_a_state_in_another_precision_is_not_taken_for_float32() -> None:
    """It may be refused or converted, but its bytes are no float32 numbers."""
    model, ids = make_model(), random_ids(2, 4)
    state = read(model, ids[:, :3])
    expected = decoder_of(model, state).step(ids[:, 3])
    try:
        logits = decoder_of(model, state.to(torch.float64)).step(ids[:, 3])
    except ValueError:
        return
    assert_close(logits, expected.double())


def test_a_state_of_another_model_is_refused() -> None:
    """It would be read, and written, as if it were this one's."""
    model, wider = make_model(), make_model(embedding_dim=68)
    state = model.initial_state(2)
    longer = state.stack._replace(blocks=wider.initial_state(2).stack.blocks)
    more = state.stack._replace(blocks=model.initial_state(3).stack.blocks)
    for wrong in (longer, more):
        with pytest.raises((ValueError, AssertionError)):
            model.decoder(state._replace(stack=wrong))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": "m", "embedding_dim": 260},
        {"layers": "s", "embedding_dim": 332},
        {"layers": "m", "embedding_dim": 404, "num_heads": 1, "block": "large"},
    ],
    ids=str,
)
def test_a_wide_model_is_the_same_on_any_number_of_threads(options: dict[str, Any]) -> None:
    """Maps of 2**18 weights and more are shared out among threads, and heads as large."""
    model = make_model(**options, bias=True)
    assert any(parameter.numel() >= 2**18 for parameter in model.parameters())
    ids, before = random_ids(2, 4), torch.get_num_threads()
    logits, states = [], []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            decoder = decoder_of(model, model.initial_state(2))
            logits.append([decoder.step(ids[:, t]).clone() for t in range(4)])
            states.append(decoder.state)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *logits))
    assert same_state(*states)
    truth, _ = copy.deepcopy(model).double()(ids)
    assert_close(torch.stack(logits[0], 1), truth, tolerance=5e-5)


def resident_bytes() -> int:
    """What the process holds in memory, where the system says so."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow() -> None:
    model, ids = make_model(), random_ids(3, 1)[:, 0]
    decoder = decoder_of(model, model.initial_state(3))

    def read_tokens(count: int) -> tuple[int, int]:
        for _ in range(count):
            decoder.step(ids)
        gc.collect()
        return tracemalloc.get_traced_memory()[0], resident_bytes()

    tracemalloc.start()
    try:
        (python, resident), (python_after, resident_after) = read_tokens(100), read_tokens(1000)
    finally:
        tracemalloc.stop()
    assert python_after - python < 1000  # not a byte a token
    assert resident_after - resident < 2**20
