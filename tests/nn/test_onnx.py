"""`openxlstm.export_onnx`: the file says in onnxruntime what the module says in PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import openxlstm
from openxlstm import XLSTM, MLSTMCell, SLSTMCell, UserError, export_onnx
from openxlstm.states import names, tensors

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

# What the tracer of torch.export warns of is its own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KINDS = [
    pytest.param({"layers": "ms", "block": "paper"}, id="ms-paper"),
    pytest.param({"layers": "m", "block": "large"}, id="m-large"),
    pytest.param({"layers": "ms", "block": "bare"}, id="ms-bare", marks=pytest.mark.slow),
]


def layer(**options: Any) -> XLSTM:
    return shaken(XLSTM(4, 16, num_heads=2, **options))


def shaken(module: Any) -> Any:
    """The module with nothing at 0 or 1, yet near enough to a start that rounding stays small."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # it warns of constants that the exporter leaves over
    return onnxruntime.InferenceSession(path, options)


def check(
    onnx_model: Any, module: nn.Module, x: Tensor, state: Any, reset: Tensor | None = None
) -> None:
    """Both give one output and one state."""
    given = [x, *tensors(state), *([] if reset is None else [reset])]
    inputs = [part.name for part in onnx_model.get_inputs()]
    feed = {name: part.numpy() for name, part in zip(inputs, given, strict=True)}
    with torch.no_grad():
        y, after = module(x, state) if reset is None else module(x, state, reset=reset)
    results = onnx_model.run(None, feed)
    for ours, expected in zip(results, [y, *tensors(after)], strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-4, atol=1e-5)


def some_state(module: nn.Module, x: Tensor) -> Any:
    with torch.no_grad():
        return module(torch.randn_like(x))[1]


@pytest.mark.parametrize(
    "options",
    [
        KINDS[0],
        *(pytest.param(*kind.values, id=kind.id, marks=pytest.mark.slow) for kind in KINDS[1:]),
    ],
)
def test_a_step(options: dict[str, Any], tmp_path: Path) -> None:
    """Of any batch, with the state that the step before returned."""
    module = layer(**options).eval()
    export_onnx(module, tmp_path / "step.onnx", num_steps=1)
    model = session(tmp_path / "step.onnx")
    for batch in (1, 3):
        x = torch.randn(1, batch, 4)
        check(model, module, x, module.initial_state(batch))
        check(model, module, x, some_state(module, x))


@pytest.mark.parametrize("options", KINDS)
def test_a_sequence(options: dict[str, Any], tmp_path: Path) -> None:
    """Of any batch and any length: one step, some, and more than a loop takes in one turn."""
    module = layer(batch_first=True, **options).eval()
    export_onnx(module, tmp_path / "any.onnx")
    model = session(tmp_path / "any.onnx")
    for batch, steps in ((2, 1), (1, 7), (2, 32), (2, 70)):
        x = torch.randn(batch, steps, 4)
        check(model, module, x, module.initial_state(batch))
        check(model, module, x, some_state(module, x))


def test_bare_blocks_resets_and_both_directions(tmp_path: Path) -> None:
    module = layer(layers="s", block="bare", bidirectional=True).eval()
    export_onnx(module, tmp_path / "both.onnx", reset=True)
    x, reset = torch.randn(9, 2, 4), torch.rand(9, 2) < 0.3
    check(session(tmp_path / "both.onnx"), module, x, some_state(module, x), reset)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 40, None])
@pytest.mark.parametrize("options", KINDS)
def test_resets(options: dict[str, Any], num_steps: int | None, tmp_path: Path) -> None:
    module = layer(**options, bidirectional=True).eval()
    export_onnx(module, tmp_path / "reset.onnx", num_steps=num_steps, reset=True)
    for steps in (2, 9, 50) if num_steps is None else (num_steps,):
        x, reset = torch.randn(steps, 2, 4), torch.rand(steps, 2) < 0.3
        check(session(tmp_path / "reset.onnx"), module, x, some_state(module, x), reset)


@pytest.mark.parametrize("kind", [SLSTMCell, MLSTMCell])
def test_a_cell(kind: type[nn.Module], tmp_path: Path) -> None:
    cell = shaken(kind(4, 16, num_heads=2))
    export_onnx(cell, tmp_path / "cell.onnx")  # pyright: ignore[reportArgumentType]
    model, x = session(tmp_path / "cell.onnx"), torch.randn(3, 3, 4)
    check(model, cell, x[0], some_state(cell, x[0]))

    # A stream, by the names alone, as a program in another language would read it.
    state = {p.name: torch.zeros(3, *p.shape[1:]).numpy() for p in model.get_inputs()[1:]}
    expected = None
    for x_t in x:
        result, *after = model.run(None, {"x": x_t.numpy(), **state})
        state = dict(zip(state, after, strict=True))
        with torch.no_grad():
            h, expected = cell(x_t, expected)
        torch.testing.assert_close(torch.from_numpy(result), h, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[XLSTM, Path]:
    """A layer in training, of a fixed batch, and its file."""
    module = layer(layers="s", block="bare", dropout=0.5, num_layers=2)
    path = tmp_path_factory.mktemp("exported") / "fixed.onnx"
    export_onnx(module, path, num_steps=3, batch_size=2, reset=True)
    return module, path


def test_names_and_shapes(exported: tuple[XLSTM, Path]) -> None:
    module, path = exported
    model = session(path)
    described = names(module.initial_state(2))
    assert described[0] == "forward.blocks.0.cell.h"
    inputs, outputs = model.get_inputs(), model.get_outputs()
    assert [part.name for part in inputs] == [
        "x", *(f"state.{name}" for name in described), "reset",
    ]  # fmt: skip
    assert [part.name for part in outputs] == ["y", *(f"next_state.{name}" for name in described)]
    assert inputs[0].shape == [3, 2, 4]
    assert inputs[-1].shape == [3, 2]
    assert outputs[0].shape == [3, 2, 16]


def test_it_is_as_in_evaluation(exported: tuple[XLSTM, Path]) -> None:
    """Without dropout; the module itself stays in training."""
    module, path = exported
    assert module.training
    assert all(part.training for part in module.modules())
    x, reset = torch.randn(3, 2, 4), torch.zeros(3, 2, dtype=torch.bool)
    check(session(path), module.eval(), x, module.initial_state(2), reset)
    module.train()


def test_it_needs_openxlstm_and_this_machine_no_more(exported: tuple[XLSTM, Path]) -> None:
    model = onnx.load(exported[1])
    onnx.checker.check_model(model)
    assert {entry.domain for entry in model.opset_import} <= {"", "pkg.torch.__subgraph__"}
    content = exported[1].read_bytes()
    assert str(Path(openxlstm.__file__).parent).encode() not in content
    assert b"openxlstm" not in content


class TestWrong:
    """What a user can get wrong is said in one line."""

    def test_without_onnx(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("openxlstm.onnx_export.find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"onnx and onnxscript: .*pip install openxlstm\[onnx"):
            export_onnx(layer(), tmp_path / "x.onnx")

    def test_another_module(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"takes an XLSTM, an SLSTMCell or.*not a Linear"):
            export_onnx(nn.Linear(3, 3), tmp_path / "x.onnx")  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("option", ["num_steps", "batch_size"])
    def test_sizes(self, option: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"{option} must be at least 1 or None"):
            export_onnx(layer(), tmp_path / "x.onnx", **{option: 0})  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("options", [{"reset": True}, {"num_steps": 2}])
    def test_a_cell_has_neither_steps_nor_resets(
        self, options: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="a cell reads one step"):
            export_onnx(SLSTMCell(4, 8), tmp_path / "x.onnx", **options)
