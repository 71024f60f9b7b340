"""Modules are what PyTorch's users think they are.

Whatever is put in a part's place, hooked onto it or done to its weights counts: in training, in a
sequence, in single steps, with a decoder and a stepper that were made before or after.
"""

import copy
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_cases import needs_native
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from openxlstm import XLSTM, LanguageModel, ModelConfig
from openxlstm.nn.fusion import are_plain
from openxlstm.ops.native import backend

V, D, B, T = 11, 16, 2, 4
BLOCKS: dict[str, dict[str, Any]] = {
    "paper": {"layers": "ms", "num_positions": 3},
    "paper with biases": {"layers": "sm", "bias": True},
    "large": {"layers": "mm", "block": "large", "bias": True},
}
each_block = pytest.mark.parametrize("name", BLOCKS)
ids = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))


def make_model(name: str, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    config = ModelConfig(vocab_size=V, embedding_dim=D, num_heads=2, **BLOCKS[name])
    return randomised(LanguageModel(config).eval())


def randomised(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def linears(model: nn.Module) -> list[str]:
    kinds = nn.Linear | nn.Embedding
    return [name for name, part in model.named_modules() if isinstance(part, kinds)]


def leaves(model: nn.Module) -> list[str]:
    return [name for name, part in model.named_modules() if name and not part._modules]


def replace(model: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, part)


def by_steps(model: Any) -> Tensor:
    """Logits of single steps of `forward` (B, T, V)."""
    state, logits = None, []
    for t in range(T):
        out, state = model(ids[:, t : t + 1], state)
        logits.append(out)
    return torch.cat(logits, 1)


def by_decoder(model: LanguageModel, decoder: Any = None) -> Tensor:
    decoder = model.decoder(model.initial_state(B)) if decoder is None else decoder
    return torch.stack([decoder.step(ids[:, t]).clone() for t in range(T)], 1)


def answers(model: LanguageModel) -> dict[str, Tensor]:
    """The same logits, in every way that there is to have them."""
    with torch.no_grad():
        return {
            "sequence": model(ids)[0],
            "steps": by_steps(model),
            "decoder": by_decoder(model),
        }


def assert_same(model: LanguageModel, truth: LanguageModel, what: str, tol: float = 2e-5) -> None:
    """Every answer of `model` is that of `truth`, a plain model in float64."""
    with torch.no_grad():
        expected = copy.deepcopy(truth).double()(ids)[0]
    for way, logits in answers(model).items():
        assert_close(logits, expected, f"{what}, {way}", tolerance=tol)


class LoRA(nn.Module):
    """A low-rank update beside a Linear or an Embedding."""

    def __init__(self, base: Any, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        rows, columns = base.weight.shape
        self.A = nn.Parameter(0.3 * torch.randn(rank, columns))
        self.B = nn.Parameter(0.3 * torch.randn(rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.base, nn.Embedding):
            return self.base(x) + F.embedding(x, self.B) @ self.A
        return self.base(x) + x @ self.A.T @ self.B.T

    def merged(self) -> Any:
        merged = copy.deepcopy(self.base).requires_grad_(True)
        with torch.no_grad():
            merged.weight += self.B @ self.A
        return merged


@each_block
def test_lora_in_place_of_any_linear_counts_and_learns(name: str) -> None:
    for place in linears(make_model(name)):
        model, truth = make_model(name), make_model(name)
        adapter = LoRA(model.get_submodule(place))
        replace(model, place, adapter)
        replace(truth, place, adapter.merged())
        assert_same(model, truth, place)
        for each in (model, truth):
            F.cross_entropy(each(ids)[0].flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
        dW: Any = truth.get_submodule(place).weight.grad
        dA, dB = adapter.A.grad, adapter.B.grad
        assert dA is not None
        assert dB is not None
        assert_close(dA, (adapter.B.T @ dW).double(), f"dA at {place}", tolerance=2e-5)
        assert_close(dB, (dW @ adapter.A.T).double(), f"dB at {place}", tolerance=2e-5)
        names = dict(model.named_parameters())
        for other, parameter in truth.named_parameters():
            if not other.startswith(place):
                grad = names[other].grad
                assert grad is not None, f"{other} beside {place}"
                assert_close(grad, parameter.grad.double(), other, tolerance=1e-4)  # pyright: ignore


def changed_by_hook(part: nn.Module) -> None:
    part.register_forward_hook(lambda _, __, y: changed(y))


def changed_after_a_pre_hook(part: nn.Module) -> None:
    """A hook that replaces nothing, but has to see the call."""
    seen: list[int] = []
    part.register_forward_pre_hook(lambda *_: seen.append(1))
    part.register_forward_hook(lambda _, __, y: changed(y) if seen.pop() else y)


def changed_by_method(part: nn.Module) -> None:
    forward = part.forward
    part.forward = lambda *args, **kwargs: changed(forward(*args, **kwargs))


def changed_by_compiled_call(part: nn.Module) -> None:
    forward = part.forward
    part._compiled_call_impl = lambda *args, **kwargs: changed(forward(*args, **kwargs))


def changed(y: Any) -> Any:
    """An output, or the first of several, with its last columns larger: no norm undoes that."""
    if isinstance(y, tuple):
        return (changed(y[0]), *y[1:])
    return y * torch.linspace(0.5, 1.5, y.shape[-1], dtype=y.dtype)


class Changed(nn.Module):
    """The same as a module of its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return changed(self.base(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


WATCHERS = [
    changed_by_hook,
    changed_after_a_pre_hook,
    changed_by_method,
    changed_by_compiled_call,
]


@each_block
def test_what_happens_when_a_part_is_called_counts(name: str) -> None:
    """Of every module, leaf or not, and whether the decoder was made before or after."""
    parts = [
        part for part, _ in make_model(name).named_modules() if part not in ("", "stack.blocks")
    ]
    for part, watch in zip(parts, cycle(WATCHERS)):
        model, truth = make_model(name), make_model(name)
        decoder = model.decoder(model.initial_state(B))
        with torch.no_grad():
            plain = model(ids)[0]
            replace(truth, part, Changed(truth.get_submodule(part)))
            watch(model.get_submodule(part))
            expected = truth(ids)[0].double()
        assert not torch.allclose(expected.float(), plain, atol=1e-3), part
        for way, logits in (answers(model) | {"before": by_decoder(model, decoder)}).items():
            assert_close(logits, expected, f"{watch.__name__} {part}, {way}", tolerance=2e-5)


@each_block
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # the embedding reads integers
def test_hooks_of_every_kind_fire(name: str) -> None:
    """On every module, in training and in generation; a removed one lets the decoder be native."""
    model = make_model(name)
    parts = {part: m for part, m in model.named_modules() if part != "stack.blocks"}
    fired: set[tuple[str, str]] = set()

    def note(part: str, kind: str) -> Callable[..., None]:
        return lambda *_: fired.add((part, kind))

    handles = []
    for part, module in parts.items():
        handles += [
            module.register_forward_pre_hook(note(part, "forward_pre")),
            module.register_forward_hook(note(part, "forward")),
            module.register_full_backward_pre_hook(note(part, "backward_pre")),
            module.register_full_backward_hook(note(part, "backward")),
        ]
    model(ids)[0].square().mean().backward()
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    assert {(part, kind) for part in parts for kind in kinds} == fired
    fired.clear()
    decoder = model.decoder(model.initial_state(B))
    decoder.step(ids[:, 0])
    assert {(part, kind) for part in parts for kind in kinds[:2]} == fired
    assert decoder.fallback_reason is not None
    for handle in handles:
        handle.remove()
    assert decoder.fallback_reason == backend.missing()


def test_hooks_for_all_modules_fire() -> None:
    model, seen = make_model("paper"), set()
    decoder = model.decoder(model.initial_state(B))
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.add(m))
    try:
        assert not are_plain((model.head, nn.Linear))
        model(ids)
        assert seen >= {m for m in model.modules() if not isinstance(m, nn.ModuleList)}
        seen.clear()
        decoder.step(ids[:, 0])
        assert model.head in seen
    finally:
        handle.remove()
    assert are_plain((model.head, nn.Linear))


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def pruned(part: Any) -> None:
    prune.l1_unstructured(part, "weight", 0.3)


def old_weight_norm(part: Any) -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(part)
    part.weight_g.data.mul_(1.5)


def new_weight_norm(part: Any) -> None:
    parametrizations.weight_norm(part)
    part.parametrizations.weight.original0.data.mul_(1.5)


def parametrized(part: Any) -> None:
    parametrize.register_parametrization(part, "weight", Double())


def spectral_norm(part: Any) -> None:
    parametrizations.spectral_norm(part)


def generated(part: Any) -> None:
    """A weight that is a plain tensor, as a hypernetwork sets it."""
    weight = part.weight
    del part.weight
    part.weight = 1.5 * weight.detach()


WAYS = [pruned, old_weight_norm, new_weight_norm, parametrized, spectral_norm, generated]


@each_block
@pytest.mark.parametrize("first", [0, 3])
def test_weights_that_are_computed_count(name: str, first: int) -> None:
    """Of every part with a matrix, beside a plain model that has them as its own."""
    parts = make_model(name).named_modules()
    places = [n for n, m in parts if getattr(m, "weight", torch.empty(0)).dim() > 1]
    for place, change in zip(places, cycle(WAYS[first:] + WAYS[:first])):
        model, truth = make_model(name), make_model(name)
        part: Any = model.get_submodule(place)
        decoder = model.decoder(model.initial_state(B))
        change(part.eval())
        model(ids)  # weight norm computes its weight when it is called
        with torch.no_grad():
            truth.get_parameter(f"{place}.weight").copy_(part.weight)
        assert_same(model, truth, place)
        with torch.no_grad():
            expected = copy.deepcopy(truth).double()(ids)[0]
        assert_close(by_decoder(model, decoder), expected, f"{place}, living", tolerance=2e-5)


def train_two_steps(model: nn.Module) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids)[0].flatten(0, 1), ids.roll(-1, 1).flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@each_block
def test_what_is_pruned_trains(name: str) -> None:
    """Its zeros stay zeros, and the second step is that of masked weights."""
    for place in linears(make_model(name)):
        model = make_model(name).train()
        part: Any = model.get_submodule(place)
        pruned(part)
        zeros = part.weight == 0
        train_two_steps(model)
        model(ids)
        assert zeros.any()
        assert (part.weight[zeros] == 0).all(), place
        assert part.weight_orig.grad is not None


@each_block
def test_parameters_of_the_layers_themselves_may_be_changed(name: str) -> None:
    """Gates, recurrent weights and skips are no Linears, and are parametrized all the same."""
    model = make_model(name)
    own = [
        (part, key)
        for part, module in model.named_modules()
        for key, value in module.named_parameters(recurse=False)
        if key not in ("weight", "bias") or "layer" in part.rpartition(".")[2]
        if value.dim() > 0
    ]
    assert own
    for part, key in own:
        model, truth = make_model(name), make_model(name)
        decoder = model.decoder(model.initial_state(B))
        parametrize.register_parametrization(model.get_submodule(part), key, Double())
        with torch.no_grad():
            truth.get_parameter(f"{part}.{key}").mul_(2)
            expected = copy.deepcopy(truth).double()(ids)[0]
        assert_same(model, truth, f"{part}.{key}")
        assert_close(by_decoder(model, decoder), expected, f"{part}.{key}", tolerance=2e-5)


@each_block
def test_weights_may_be_swapped(name: str) -> None:
    model, other = make_model(name), make_model(name, seed=1)
    weights: dict[str, Tensor] = dict(other.named_parameters())
    with torch.no_grad():
        expected = copy.deepcopy(other).double()(ids)[0]
        assert_close(torch.func.functional_call(model, weights, ids)[0], expected, tolerance=2e-5)
    decoder = model.decoder(model.initial_state(B))
    vector = nn.utils.parameters_to_vector(other.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    del vector
    assert_close(by_decoder(model, decoder), expected, "a vector", tolerance=2e-5)
    model, decoder = make_model(name), None
    decoder = model.decoder(model.initial_state(B))
    model.load_state_dict(other.state_dict(), assign=True)
    assert_close(by_decoder(model, decoder), expected, "assigned", tolerance=2e-5)


@each_block
def test_a_model_may_change_its_dtype_under_a_decoder(name: str) -> None:
    """Each step in the dtype that the model then has, from the state so far."""
    model = make_model(name)
    truth = copy.deepcopy(model).double()
    decoder, logits = model.decoder(model.initial_state(B)), []
    for t, dtype in enumerate([torch.float32, torch.float64, torch.float32]):
        model.to(dtype)
        junk = [torch.full((1 << 12,), torch.nan) for _ in range(8)]  # where weights were
        logits.append(decoder.step(ids[:, t]).double())
        del junk
    assert decoder.state.stack.blocks[0].cell[0].dtype == torch.float32
    with torch.no_grad():
        expected = truth(ids[:, :3])[0]
    assert_close(torch.stack(logits, 1).float(), expected, tolerance=2e-5)
    model.to(torch.bfloat16)
    assert decoder.step(ids[:, 3]).isfinite().all()


def test_a_layer_may_change_its_dtype_under_a_stepper() -> None:
    rnn = randomised(XLSTM(3, D, layers="ms", num_heads=2, batch_first=True))
    truth, x = copy.deepcopy(rnn).double(), torch.randn(B, 3, 3)
    stepper = rnn.stepper(B)
    ys = []
    for t, dtype in enumerate([torch.float32, torch.float64, torch.float32]):
        rnn.to(dtype)
        ys.append(stepper.step(x[:, t].to(dtype)).float())
    assert_close(torch.stack(ys, 1), truth(x.double())[0], tolerance=2e-5)


def test_training_a_model_in_bfloat16_between_steps_is_seen() -> None:
    """Vectors, which the decoder keeps in float32, as well as matrices."""
    for name in BLOCKS:
        model = make_model(name).bfloat16()
        decoder = model.decoder(model.initial_state(B))
        before = decoder.step(ids[:, 0]).clone()
        assert not torch.equal(before, decoder.select(range(B)).step(ids[:, 0]))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() < 2:
                    parameter.mul_(1.5)
        fresh = decoder.select(range(B))
        assert torch.equal(decoder.step(ids[:, 1]), fresh.step(ids[:, 1]))


def replica(module: nn.Module) -> Any:
    """A copy whose parameters are plain tensors with a graph, as DataParallel makes them."""
    copies = {part: part._replicate_for_data_parallel() for part in module.modules()}  # pyright: ignore
    for part, twin in copies.items():
        vars(twin)["_former_parameters"] = {}
        for key, child in part._modules.items():
            if child is not None:
                setattr(twin, key, copies[child])
        for key, parameter in part._parameters.items():
            if parameter is None:
                twin._parameters[key] = None
            else:
                setattr(twin, key, parameter * 1)
                vars(twin)["_former_parameters"][key] = parameter * 1
    return copies[module]


@each_block
def test_replicas_compute_and_learn(name: str) -> None:
    model = make_model(name)
    twin = replica(model)
    assert not list(twin.parameters())
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(ids)[0]
    logits, _ = twin(ids, twin.initial_state(B))
    assert_close(logits, expected, tolerance=2e-5)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert_close(by_decoder(twin), expected, tolerance=2e-5)


@pytest.mark.parametrize("block", ["paper", "large", "bare"])
def test_replicas_of_a_layer_compute(block: Any) -> None:
    layers = "mm" if block == "large" else "ms"
    rnn = XLSTM(3, D, layers=layers, num_heads=2, block=block, batch_first=True)
    x = torch.randn(B, T, 3)
    y, state = replica(rnn)(x)
    torch.testing.assert_close(y, rnn(x)[0], rtol=1e-5, atol=1e-6)
    replica(rnn)(x, state, lengths=[T, 2])


@each_block
def test_a_part_may_be_replaced_under_a_decoder(name: str) -> None:
    """By another of its class, of any size that fits: the plan follows, or modules are called."""
    for place in linears(make_model(name)):
        model = make_model(name)
        decoder = model.decoder(model.initial_state(B))
        replace(model, place, copy.deepcopy(make_model(name, seed=1).get_submodule(place)))
        with torch.no_grad():
            expected = copy.deepcopy(model).double()(ids)[0]
        assert_close(by_decoder(model, decoder), expected, place, tolerance=2e-5)
        assert decoder.fallback_reason == backend.missing()
    model = make_model("paper")
    decoder = model.decoder(model.initial_state(B))
    model.head = nn.Linear(D, V + 3, bias=True)
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(ids)[0]
    assert_close(by_decoder(model, decoder), expected, "a head with a bias", tolerance=2e-5)


@each_block
def test_settings_may_be_changed(name: str) -> None:
    """Numbers that a module keeps beside its weights: read at every call, by every path."""
    for part, key, value in [
        ("stack.blocks.0.layer", "eps", 0.5),
        ("stack.blocks.1.layer", "eps", 0.25),
        ("stack.blocks.0.layer", "gate_soft_cap", 0.5),
        ("stack.blocks.0.layer", "forget_gate", "exp"),
        ("stack.blocks.1.layer", "forget_gate", "exp"),
        ("stack.blocks.0.norm", "eps", 0.3),
        ("stack.blocks.1.layer.norm", "eps", 0.3),
        ("stack.norm", "eps", 0.3),
        ("", "logit_soft_cap", 0.7),
    ]:
        model = make_model(name)
        decoder = model.decoder(model.initial_state(B))
        module = model.get_submodule(part)
        if not hasattr(module, key):
            continue
        with torch.no_grad():
            before = model(ids)[0]
            setattr(module, key, value)
            expected = copy.deepcopy(model).double()(ids)[0]
        assert not torch.allclose(before.double(), expected, atol=1e-4), f"{part}.{key}"
        assert_same(model, model, f"{part}.{key}")
        assert_close(by_decoder(model, decoder), expected, f"{part}.{key}", tolerance=2e-5)


@needs_native
def test_the_reason_names_the_module() -> None:
    model = make_model("paper")
    decoder = model.decoder(model.initial_state(B))
    assert decoder.fallback_reason is None
    up = model.stack.blocks[1].ff.up_proj  # pyright: ignore
    model.stack.blocks[1].ff.up_proj = LoRA(up)  # pyright: ignore
    reason = decoder.fallback_reason
    assert reason == "stack.blocks.1.ff.up_proj is of class LoRA, not Linear"
    model.stack.blocks[1].ff.up_proj = up  # pyright: ignore
    assert decoder.fallback_reason is None


@pytest.mark.parametrize("block", ["paper", "large", "bare"])
def test_steppers_see_changes_as_well(block: Any) -> None:
    layers = "mm" if block == "large" else "ms"
    rnn = randomised(XLSTM(3, D, layers=layers, num_heads=2, block=block, batch_first=True))
    x = torch.randn(B, T, 3)
    for place in [name for name in linears(rnn) if name]:
        layer = copy.deepcopy(rnn)
        stepper = layer.stepper(B)
        adapter = LoRA(layer.get_submodule(place))
        replace(layer, place, adapter)
        truth = copy.deepcopy(rnn).double()
        replace(truth, place, copy.deepcopy(adapter.merged()).double())
        y = torch.stack([stepper.step(x[:, t]) for t in range(T)], 1)
        assert_close(y, truth(x.double())[0], place, tolerance=2e-5)
        assert_close(layer(x)[0], truth(x.double())[0], place, tolerance=2e-5)


@each_block
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_default_dtype_changes_nothing(name: str, dtype: torch.dtype) -> None:
    """Nor does the default device: what native code is given depends on nothing global."""
    model = make_model(name)
    rnn = XLSTM(3, D, layers="mm" if name == "large" else "ms", num_heads=2)
    x = torch.randn(B, 3)
    expected, state = by_decoder(model), model.initial_state(B)
    y = rnn.stepper(B).step(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            assert torch.equal(by_decoder(model, model.decoder(state)), expected)
            stepper = rnn.stepper(B)
            assert torch.equal(stepper.step(x), y)
            assert stepper.state.forward.blocks[0].cell[0].device.type == "cpu"
        assert torch.allclose(model(ids)[0], expected, atol=1e-5)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.filterwarnings("ignore:.*quant")  # torch is moving it to another package
def test_quantised_layers_stand_in_for_linears() -> None:
    model = torch.ao.quantization.quantize_dynamic(make_model("paper"), {nn.Linear})
    plain = answers(make_model("paper"))["sequence"]
    assert type(model.head) is not nn.Linear
    for way, logits in answers(model).items():
        error = (logits - plain).square().mean().sqrt() / plain.std()
        assert 0 < error < 0.25, way


def test_normalisations_of_others_stand_in() -> None:
    model, truth = make_model("paper"), make_model("paper")
    for name, norm in list(truth.named_modules()):
        if type(norm).__name__ == "LayerNorm":
            own = nn.LayerNorm(D, bias=False)
            own.weight.data = 1 + norm.weight.data  # pyright: ignore
            replace(model, name, own)
    assert_same(model, truth, "torch's layer norm")
