"""Checkpoints: everything comes back, and nothing of another run does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from openxlstm import states
from openxlstm.errors import UserError
from openxlstm.lm.folder import load_weights
from openxlstm.lm.model import LanguageModel
from openxlstm.train.checkpoint import METADATA, load_checkpoint, save_checkpoint

MakeModel = Callable[..., LanguageModel]
VALUES = {"progress": {"step": 3, "best": float("inf")}, "batches": {"step": 3}, "note": "ä"}


def adamw(model: LanguageModel) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameter_groups(0.1), lr=0.01, fused=True)


def train(model: LanguageModel, optimizer: torch.optim.Optimizer, steps: int) -> states.ModelState:
    state = None
    for _ in range(steps):
        logits, state = model(torch.randint(6, (2, 5)))
        optimizer.zero_grad()
        logits.square().sum().backward()
        optimizer.step()
    assert state is not None
    return state.detach()


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(make_model: MakeModel, request: pytest.FixtureRequest) -> LanguageModel:
    return make_model(tie_weights=request.param, num_positions=3)


@pytest.fixture
def path(model: LanguageModel, tmp_path: Path) -> Path:
    """A checkpoint after three steps."""
    optimizer = adamw(model)
    state = train(model, optimizer, 3)
    save_checkpoint(tmp_path / "checkpoints" / "x.safetensors", model, optimizer, state, VALUES)
    return tmp_path / "checkpoints" / "x.safetensors"


def rewrite(path: Path, edit: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """Edits the tensors and the plain values of a checkpoint."""
    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()[METADATA])
    tensors = load_file(path)
    edit(tensors, values)
    save_file(tensors, path, metadata={METADATA: json.dumps(values)})


def test_averages_are_what_others_read(
    make_model: MakeModel, model: LanguageModel, tmp_path: Path
) -> None:
    options = {"tie_weights": model.config.tie_weights, "num_positions": 3}
    average, path = make_model(seed=5, **options), tmp_path / "x.safetensors"
    save_checkpoint(path, model, adamw(model), None, VALUES, average)
    read, stepped, averaged = (make_model(seed=seed, **options) for seed in (6, 7, 8))
    load_weights(read, path, "model.", tied=model.config.tie_weights)
    load_checkpoint(path, stepped, adamw(stepped), averaged)
    for one, other in ((read, average), (averaged, average), (stepped, model)):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_round_trip_is_exact(make_model: MakeModel, model: LanguageModel, path: Path) -> None:
    """Model, optimizer, state, random numbers and values: what follows is what would have."""
    optimizer = adamw(model)
    state, values = load_checkpoint(path, model, optimizer)
    assert values == VALUES
    after_here = train(model, optimizer, 2)

    twin = make_model(seed=9, tie_weights=model.config.tie_weights, num_positions=3)
    twin_optimizer = adamw(twin)
    torch.manual_seed(77)
    twin_state, _ = load_checkpoint(path, twin, twin_optimizer)
    for a, b in zip(states.tensors(twin_state), states.tensors(state), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    after_there = train(twin, twin_optimizer, 2)
    for a, b in zip(states.tensors(after_there), states.tensors(after_here), strict=True):
        assert torch.equal(a, b)
    for (name, a), b in zip(twin.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_carried_state_is_that_of_its_model(path: Path, model: LanguageModel) -> None:
    state, _ = load_checkpoint(path, model, adamw(model))
    assert isinstance(state, states.ModelState)
    assert state.position.tolist() == [5, 5]
    model(torch.randint(6, (2, 1)), state)


def test_no_state_is_none(model: LanguageModel, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x", model, adamw(model), None, {})
    assert load_checkpoint(tmp_path / "x", model, adamw(model)) == (None, {})


def test_the_random_state_is_restored(model: LanguageModel, path: Path) -> None:
    load_checkpoint(path, model, adamw(model))
    first = torch.rand(5)
    torch.manual_seed(123)
    load_checkpoint(path, model, adamw(model))
    assert torch.equal(torch.rand(5), first)


def test_the_optimizers_moments_are_saved(model: LanguageModel, path: Path) -> None:
    optimizer = adamw(model)
    load_checkpoint(path, model, optimizer)
    assert set(optimizer.state) == set(model.parameters())
    for slots in optimizer.state.values():
        assert set(slots) == {"step", "exp_avg", "exp_avg_sq"}
        assert slots["step"].item() == 3
        assert slots["exp_avg_sq"].max() > 0


def test_a_truncated_file_is_damaged(path: Path, model: LanguageModel) -> None:
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged") as caught:
            load_checkpoint(path, model, adamw(model))
        assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: Path, model: LanguageModel) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_checkpoint(tmp_path / "x", model, adamw(model))


@pytest.mark.parametrize("metadata", [None, {}, {METADATA: "{"}, {METADATA: "[]"}, {"a": "b"}])
def test_another_safetensors_file(
    tmp_path: Path, model: LanguageModel, metadata: dict[str, str] | None
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x", metadata=metadata)
    with pytest.raises(UserError, match="is not a training checkpoint"):
        load_checkpoint(tmp_path / "x", model, adamw(model))


def test_another_version(path: Path, model: LanguageModel) -> None:
    rewrite(path, lambda _, values: values.update(version=2))
    with pytest.raises(UserError, match="is a checkpoint of version 2; this openxlstm reads 1"):
        load_checkpoint(path, model, adamw(model))


def test_another_model(path: Path, make_model: MakeModel) -> None:
    for options in ({"layers": "sm"}, {"vocab_size": 7}, {"num_positions": 0}):
        other = make_model(**options)
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(UserError, match=r"x\.safetensors") as caught:
            load_checkpoint(path, other, adamw(other))
        assert "\n" not in str(caught.value)
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, before[name]), "nothing is loaded by halves"


def test_another_optimizer(path: Path, model: LanguageModel) -> None:
    rewrite(
        path,
        lambda tensors, _: tensors.update(
            {"optimizer.exp_avg.stack.norm.weight": torch.zeros(3)},
        ),
    )
    with pytest.raises(UserError, match=r"optimizer\.exp_avg\.stack\.norm\.weight does not fit"):
        load_checkpoint(path, model, adamw(model))
    rewrite(path, lambda tensors, _: tensors.pop("optimizer.exp_avg.stack.norm.weight"))
    rewrite(path, lambda tensors, _: tensors.update({"optimizer.exp_avg.x": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"optimizer\.exp_avg\.x does not fit"):
        load_checkpoint(path, model, adamw(model))
