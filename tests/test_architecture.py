"""Rooms import downwards only, and a few things are nowhere: read from the source itself."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import openxlstm
from openxlstm.cli.main import COMMANDS

SOURCE = Path(openxlstm.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MAY_IMPORT: dict[str, set[str] | None] = {
    "__init__": None,
    "__main__": None,
    "_version": set(),
    "errors": set(),
    "files": set(),
    "figures": {"files"},
    "spawning": set(),
    "strict": set(),
    "config": {"strict"},
    "states": set(),
    "saved_states": {"states", "files"},
    "device": set(),
    "reference": {"states"},
    "ops": {"states", "reference"},
    "nn": {"config", "states", "ops"},
    "lm": {"strict", "config", "states", "nn", "files"},
    "data": {"files", "spawning"},
    "train": {"config", "device", "states", "lm", "files", "figures"},
    "generation": {"config", "states", "device", "lm"},
    "interop": {"config", "files", "nn", "lm"},
    "hf": {"strict", "config", "states", "nn", "lm"},
    "onnx_export": {"states", "nn"},
    "runs": {
        "_version",
        "strict",
        "config",
        "device",
        "files",
        "lm",
        "data",
        "train",
        "generation",
        "interop",
    },
    "experiments": {"config", "figures", "spawning", "nn", "lm"},
    "bench": {"_version", "config", "figures", "ops", "lm", "generation"},
    "cli": None,
}  # fmt: skip
"""What each room may import of the others, None for anything; all may import errors."""

DRAWS = {"figures.py"}
"""The only file that imports matplotlib, and only while it draws."""


def name_of(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def room_of(path: Path) -> str:
    """The top-level folder or module that a source file is in."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(code: str, package: str) -> Iterator[str]:
    """Full names of everything that is imported anywhere in `code`, a module of `package`.

    What `from a import b` takes is named a.b, for b may be a module.
    """
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_rooms(code: str, package: str) -> set[str]:
    """Rooms of openxlstm that `code` imports; the package itself counts as __init__."""
    rooms = set()
    for name in imported_modules(code, package):
        top, *rest = name.split(".")
        if top == "openxlstm":
            rooms.add(rest[0] if rest and rest[0] in MAY_IMPORT else "__init__")
    return rooms


def package_of(path: Path) -> str:
    return ".".join(("openxlstm", *path.relative_to(SOURCE).parent.parts))


def forbidden(room: str, code: str, package: str = "openxlstm.room") -> set[str]:
    allowed = MAY_IMPORT[room]
    if allowed is None:
        return set()
    return imported_rooms(code, package) - allowed - {room, "errors"}


def test_imports_go_down():
    unknown = {room_of(path) for path in FILES} - MAY_IMPORT.keys()
    assert not unknown, "say in MAY_IMPORT what these rooms may import"
    wrong = {
        name_of(path): found
        for path in FILES
        if (found := forbidden(room_of(path), path.read_text(), package_of(path)))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("ops", "import openxlstm.nn.stack"),
        ("ops", "from openxlstm.nn import stack"),
        ("ops", "from openxlstm import states, nn"),
        ("ops", "from ..nn import stack"),
        ("ops", "from .. import nn"),
        ("ops", "from openxlstm import LanguageModel"),  # whatever it is, it comes from above
        ("nn", "import openxlstm"),
        ("train", "def f():\n    from openxlstm.data import batches"),
        ("lm", "if TYPE_CHECKING:\n    from openxlstm.train.loop import fit"),
        ("errors", "try:\n    import openxlstm.files\nexcept ImportError:\n    pass"),
        ("config", "from openxlstm._version import __version__"),
        ("bench", "from openxlstm.train.loop import fit"),
        ("generation", "from openxlstm.bench import timing"),
    ],
)
def test_a_wrong_import_is_found(room: str, code: str):
    assert forbidden(room, code, f"openxlstm.{room}")


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("ops", "from openxlstm.reference.mlstm import step\nimport torch"),
        ("ops", "from .check import state_dtype\nfrom ..states import MLSTMState"),
        ("data", "from openxlstm.errors import UserError"),
        ("train", "from openxlstm import states"),
        ("cli", "from openxlstm import LanguageModel"),
    ],
)
def test_a_right_import_is_allowed(room: str, code: str):
    assert not forbidden(room, code, f"openxlstm.{room}")


def test_no_room_imports_in_a_circle():
    """The table itself goes down."""
    placed: set[str] = {"errors"}
    waiting = {room: allowed for room, allowed in MAY_IMPORT.items() if allowed is not None}
    while waiting:
        ready = {room for room, allowed in waiting.items() if allowed <= placed}
        assert ready, f"a circle among {', '.join(waiting)}"
        placed |= ready
        waiting = {room: allowed for room, allowed in waiting.items() if room not in ready}


VAGUE = {"utils", "util", "common", "helpers", "helper", "misc", "core"}


def test_names_say_something():
    names = {
        name: set(name.removesuffix(".py").replace("_", "").split("/"))
        for name in map(name_of, FILES)
    }
    assert not [name for name, parts in names.items() if parts & VAGUE]


FLOORS_OF_OPS = {"reference", "ops", "ops/native", "ops/plain", "nn"}
"""Folders in which an op has the same name on purpose, from its equations up to its layer."""

INTERFACES = {"run", "step", "Options", "comparisons"}
"""Names that each command, experiment, model, or part of the benchmark has on purpose."""


def test_one_name_means_one_thing():
    """No two files have the same name, nor two public functions or classes, nor a file and a room.

    A command may be named after the room or file that it is about, and a file of `hf/` after the
    one that it wraps.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for room in SOURCE.iterdir():
        if room.is_dir():
            owners[f"file {room.name}"].add(f"{room.name}/")
    for path in FILES:
        place, folder = (p.relative_to(SOURCE).as_posix() for p in (path, path.parent))
        names = {
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
        }
        is_command = folder == "cli" and path.stem in COMMANDS
        if not is_command and folder != "hf" and path.stem != "__init__":
            names.add(f"file {path.stem}")
        for name in names - INTERFACES:
            owners[name].add("an op" if folder in FLOORS_OF_OPS else place)
    assert {name: sorted(places) for name, places in owners.items() if len(places) > 1} == {}


def test_files_can_be_read_in_one_sitting():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: length for name, length in lengths.items() if length > 420}


def matplotlib_imports(code: str) -> Iterator[bool]:
    """For each import of matplotlib in `code`, whether it is inside a function."""

    def walk(node: ast.AST, inside: bool) -> Iterator[bool]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = imported_modules(ast.unparse(node), "")
            yield from (inside for name in names if name.split(".")[0] == "matplotlib")
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return walk(ast.parse(code), False)


def test_matplotlib_is_imported_only_to_draw():
    imports = {name_of(path): list(matplotlib_imports(path.read_text())) for path in FILES}
    assert {name for name, inside in imports.items() if inside} <= DRAWS
    assert not [name for name, inside in imports.items() if not all(inside)]


def test_an_import_of_matplotlib_is_found():
    assert list(matplotlib_imports("import matplotlib.pyplot as plt")) == [False]
    assert list(matplotlib_imports("class A:\n from matplotlib import cm")) == [False]
    assert list(matplotlib_imports("def f():\n from matplotlib.figure import Figure")) == [True]


READS_TORCH_FILES = "interop/tensor_files.py"
"""The one file that reads what `torch.save` wrote: tensors alone, and no code."""


def test_torch_files_are_read_in_one_place_without_their_code():
    tree = ast.parse((SOURCE / READS_TORCH_FILES).read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    assert [ast.unparse(node) for node in named].count("torch.load") == len(calls) == 1
    options = {option.arg: ast.unparse(option.value) for option in calls[0].keywords}
    assert options["weights_only"] == "True"
    assert None not in options  # no ** that could say otherwise


def unpickling(path: Path) -> Iterator[str]:
    """What a source file says that could run the code of whoever wrote a checkpoint."""
    code = path.read_text()
    modules = {name.split(".")[0] for name in imported_modules(code, package_of(path))}
    yield from modules & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    known = {"torch.load"} if name_of(path) == READS_TORCH_FILES else set()
    for node in ast.walk(ast.parse(code)):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if name in {"torch.load", "torch.save"} - known or "pickle" in name.lower():
            yield f"line {node.lineno}: {name}"  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            yield "allow_pickle"


def test_nothing_is_unpickled():
    """A checkpoint must not be able to run code: weights are safetensors, the rest is JSON."""
    assert not {name_of(path): found for path in FILES if (found := [*unpickling(path)])}


LIGHT = (
    "openxlstm.config", "openxlstm.lm.presets", "openxlstm.data.corpora", "openxlstm",
    "openxlstm.cli.main", "openxlstm.cli.train", "openxlstm.cli.bench", "openxlstm.cli.experiment",
    "openxlstm.cli.plan",
)  # fmt: skip
"""Modules that a person waits for, as for --help: imported in this order in one process."""


def test_imports_that_cost_neither_torch_nor_matplotlib():
    code = (
        f"import importlib, sys\nfor module in {LIGHT}:\n    importlib.import_module(module)\n"
        "    if heavy := {'torch', 'matplotlib', 'numpy'} & sys.modules.keys():\n"
        "        sys.exit(f'{module} imports {heavy}')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_public_names_are_all_there():
    assert sorted(openxlstm.__all__) == dir(openxlstm)
    for name in openxlstm.__all__:
        assert getattr(openxlstm, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        openxlstm.nonsense  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
