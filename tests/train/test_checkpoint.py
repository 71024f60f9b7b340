"""Checkpoints: everything comes back, nothing of another run does, and a kill costs nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from train_cases import make_model

from openxlstm import states
from openxlstm.errors import UserError
from openxlstm.lm.model import LanguageModel
from openxlstm.train.checkpoint import (
    VALUES,
    Models,
    checkpoints,
    load_checkpoint,
    load_weights,
    newest,
    save_checkpoint,
    set_aside,
)

SAID = {"progress": {"step": 3, "best": float("inf")}, "batches": {"step": 3}, "note": "ä"}


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


def save(folder: Path, step: int, models: Models, state: Any = None, keep: int = 3) -> Path:
    optimizer = adamw(models.get("unaveraged", models["model"]))
    save_checkpoint(folder, step, models, optimizer, state, SAID, keep=keep)
    return checkpoints(folder)[0]


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return make_model(tie_weights=request.param, num_positions=3)


@pytest.fixture
def path(model: LanguageModel, tmp_path: Path) -> Path:
    """A checkpoint after three steps."""
    optimizer = adamw(model)
    state = train(model, optimizer, 3)
    save_checkpoint(tmp_path, 3, {"model": model}, optimizer, state, SAID, keep=3)
    (path,) = checkpoints(tmp_path)
    return path


def shard(path: Path) -> Path:
    (file,) = path.glob("*.safetensors")
    return file


def rewrite(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Edits the tensors of a checkpoint."""
    tensors = load_file(shard(path))
    edit(tensors)
    save_file(tensors, shard(path))


# ---- what is in one ---------------------------------------------------------------------------


def test_averages_are_what_others_read(model: LanguageModel, tmp_path: Path) -> None:
    options = {"tie_weights": model.config.tie_weights, "num_positions": 3}
    average = make_model(seed=5, **options)
    path = save(tmp_path, 1, {"model": average, "unaveraged": model})
    read, stepped, averaged = (make_model(seed=seed, **options) for seed in (6, 7, 8))
    load_weights(path, read)
    load_checkpoint(path, {"model": averaged, "unaveraged": stepped}, adamw(stepped))
    for one, other in ((read, average), (averaged, average), (stepped, model)):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_round_trip_is_exact(model: LanguageModel, path: Path) -> None:
    """Model, optimizer, state and values: what follows is what would have."""
    optimizer = adamw(model)
    state, values = load_checkpoint(path, {"model": model}, optimizer)
    assert values == SAID
    torch.manual_seed(7)
    after_here = train(model, optimizer, 2)

    twin = make_model(seed=9, tie_weights=model.config.tie_weights, num_positions=3)
    twin_optimizer = adamw(twin)
    twin_state, _ = load_checkpoint(path, {"model": twin}, twin_optimizer)
    for a, b in zip(states.tensors(twin_state), states.tensors(state), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    torch.manual_seed(7)
    after_there = train(twin, twin_optimizer, 2)
    for a, b in zip(states.tensors(after_there), states.tensors(after_here), strict=True):
        assert torch.equal(a, b)
    for (name, a), b in zip(twin.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_carried_state_is_that_of_its_model(path: Path, model: LanguageModel) -> None:
    state, _ = load_checkpoint(path, {"model": model}, adamw(model))
    assert isinstance(state, states.ModelState)
    assert state.position.tolist() == [5, 5]
    model(torch.randint(6, (2, 1)), state)


def test_no_state_is_none(model: LanguageModel, tmp_path: Path) -> None:
    path = save(tmp_path, 0, {"model": model})
    assert load_checkpoint(path, {"model": model}, adamw(model)) == (None, SAID)


def test_the_optimizers_moments_are_saved(model: LanguageModel, path: Path) -> None:
    optimizer = adamw(model)
    load_checkpoint(path, {"model": model}, optimizer)
    assert set(optimizer.state) == set(model.parameters())
    for slots in optimizer.state.values():
        assert set(slots) == {"step", "exp_avg", "exp_avg_sq"}
        assert slots["step"].item() == 3
        assert slots["exp_avg_sq"].max() > 0


def test_parts_without_a_number(tmp_path: Path) -> None:
    """A convolution over one step carries nothing: (B, 0, D)."""
    model = make_model(mlstm_conv_kernel_size=1, slstm_conv_kernel_size=1)
    optimizer = adamw(model)
    state = train(model, optimizer, 1)
    path = save(tmp_path, 1, {"model": model}, state)
    loaded, _ = load_checkpoint(path, {"model": model}, adamw(model))
    assert [part.shape for part in states.tensors(loaded)] == [
        part.shape for part in states.tensors(state)
    ]


# ---- which there are --------------------------------------------------------------------------


def test_the_newest_are_kept(model: LanguageModel, tmp_path: Path) -> None:
    for step in (1, 5, 30, 200):
        save(tmp_path, step, {"model": model}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000200", "step-00000030"]
    assert newest(tmp_path) == checkpoints(tmp_path)[0]


def test_one_of_the_same_step_is_replaced(model: LanguageModel, tmp_path: Path) -> None:
    save(tmp_path, 1, {"model": model})
    other = make_model(seed=4, tie_weights=model.config.tie_weights, num_positions=3)
    path = save(tmp_path, 1, {"model": other})
    load_weights(path, model)
    assert torch.equal(model.head.weight, other.head.weight)
    assert [file.name for file in path.parent.iterdir()] == ["step-00000001"]


def cut(path: Path, length: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(length * len(whole)) if length >= 0 else int(length)])


def flip(path: Path) -> None:
    """One bit of the last number."""
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda path: cut(shard(path), 0), "has 0 bytes instead of"),
        (lambda path: cut(shard(path), 0.5), "bytes instead of"),
        (lambda path: cut(shard(path), -1), "bytes instead of"),
        (lambda path: flip(shard(path)), "has changed"),
        (lambda path: shard(path).unlink(), "is missing"),
        (lambda path: (path / VALUES).unlink(), "does not exist"),
        (lambda path: cut(path / VALUES, 0.5), "is damaged"),
        (lambda path: (path / VALUES).write_text("[]"), "is damaged"),
        (lambda path: (path / VALUES).write_text("{}"), "is not a checkpoint's"),
        (lambda path: (path / VALUES).write_text('{"version": 2, "files": 3}'), "is not a"),
        (lambda path: [shard(path).unlink(), (path / VALUES).unlink()], "does not exist"),
    ],
)
def test_a_damaged_one_is_said_and_the_one_before_is_used(
    break_it: Callable[[Path], object], words: str, model: LanguageModel, tmp_path: Path
) -> None:
    save(tmp_path, 1, {"model": model})
    path = save(tmp_path, 2, {"model": model})
    break_it(path)
    said: list[str] = []
    assert newest(tmp_path, said.append) == path.with_name("step-00000001")
    (line,) = said
    assert f"the checkpoint {path} is damaged" in line
    assert words in line

    set_aside(tmp_path, newest(tmp_path, said.append))
    assert [found.name for found in checkpoints(tmp_path)] == ["step-00000001"]
    assert path.with_name(path.name + ".damaged").exists(), "somebody may want to look at it"
    save(tmp_path, 2, {"model": model}, keep=1)
    assert newest(tmp_path) == path


def test_none_at_all(tmp_path: Path, model: LanguageModel) -> None:
    assert newest(tmp_path) is None
    path = save(tmp_path, 1, {"model": model})
    shutil.rmtree(path)
    assert newest(tmp_path) is None


def test_another_version(path: Path) -> None:
    values = json.loads((path / VALUES).read_text())
    (path / VALUES).write_text(json.dumps({**values, "version": 7}))
    with pytest.raises(UserError, match="has version 7; this openxlstm reads 2"):
        newest(path.parent.parent)


@pytest.mark.parametrize(
    "moment",
    [
        "openxlstm.train.checkpoint.save",
        "openxlstm.train.checkpoint.file_sha256",
        "openxlstm.train.checkpoint.write_json",
        "pathlib.Path.rename",
    ],
)
def test_a_kill_while_it_is_written(
    moment: str, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was done by then, the one before is the newest, and the next one is written."""
    before = save(tmp_path, 1, {"model": model})

    class Killed(BaseException):
        pass

    def kill(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # nobody tidies up
        patch.setattr(moment, kill)
        with pytest.raises(Killed):
            save(tmp_path, 2, {"model": model})
    assert newest(tmp_path) == before
    assert len(list(before.parent.iterdir())) == 2
    save(tmp_path, 2, {"model": model})
    assert sorted(path.name for path in before.parent.iterdir()) == [
        "step-00000001", "step-00000002",
    ]  # fmt: skip


def test_no_space(model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = save(tmp_path, 1, {"model": model})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for place in ("torch.distributed.checkpoint.filesystem.os.fsync", "openxlstm.files.os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(OSError, match="No space left"):
                save(tmp_path, 2, {"model": model})
        assert list(before.parent.iterdir()) == [before]
        assert newest(tmp_path) == before


# ---- what does not fit ------------------------------------------------------------------------


def test_another_model(path: Path) -> None:
    others: list[dict[str, Any]] = [{"layers": "sm"}, {"vocab_size": 7}, {"num_positions": 0}]
    for options in others:
        other = make_model(**options)
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        for load in (
            lambda other=other: load_checkpoint(path, {"model": other}, adamw(other)),
            lambda other=other: load_weights(path, other),
        ):
            with pytest.raises(UserError, match=r"step-00000003") as caught:
                load()
            assert "\n" not in str(caught.value)
        for name, tensor in other.state_dict().items():
            assert torch.equal(tensor, before[name]), "nothing is loaded by halves"


def test_another_optimizer(path: Path, model: LanguageModel) -> None:
    name = "optimizer.exp_avg.stack.norm.weight"
    rewrite(path, lambda tensors: tensors.update({name: torch.zeros(3)}))
    with pytest.raises(UserError, match=rf"{name} of shape \(3,\)"):
        load_checkpoint(path, {"model": model}, adamw(model))
    rewrite(path, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match="lacks a part of the optimizer"):
        load_checkpoint(path, {"model": model}, adamw(model))
    rewrite(path, lambda tensors: tensors.update({"optimizer.exp_avg.x": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"holds optimizer\.exp_avg\.x, which the model does not"):
        load_checkpoint(path, {"model": model}, adamw(model))
