"""What the README and the pages in docs say to type does what they say."""

import contextlib
import fnmatch
import gzip
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs import Jobs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LETTERS = (
    "Once upon a time ROMEO: there was a cat, who sat on The mat and Did not know whY it was\n"
)
TEXT = LETTERS * 100

SHORT = {
    "train": ["--batch-size", "4", "--window", "8", "--embedding-dim", "16", "--eval-batches", "1",
              "--eval-every", "10", "--quiet"],
    "experiment": ["--quick", "--quiet"],
    "bench": None,  # it measures for a minute: tests/cli/test_bench.py
}  # fmt: skip
"""What is added to a command, so that it takes a moment; None leaves it out."""

LENGTHS = ("--steps", "--minutes", "--tokens")


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of openxlstm and torchrun in a page's indented lines and `sh` blocks, in order.

    Blocks without a language are for machines that are not here."""
    text = page.read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```|((?:^    \S[^\n]*\n)+)", text, re.MULTILINE | re.DOTALL)
    for fenced, indented in blocks:
        for line in (fenced or indented).replace("\\\n", " ").splitlines():
            if re.match(r"\s*(openxlstm|torchrun) ", line):
                yield shlex.split(line, comments=True)


def python_blocks(page: Path) -> Iterator[tuple[str, str | None]]:
    """The `python` blocks of a page, each with what the `text` block right after it says that it
    prints, None without one. Lines stay where they are in the page, for tracebacks."""
    text = page.read_text()
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    for block in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        yield "\n" * text[: block.start(1)].count("\n") + block[1], block[2]


def shortened(arguments: list[str]) -> list[str] | None:
    """The same command, made to take a moment; None if that can't be."""
    added = SHORT.get(arguments[0], [])
    if added is None or "--list-presets" in arguments:
        return None if added is None else arguments
    if arguments[0] != "train":
        return [*arguments, *(option for option in added if option not in arguments)]
    arguments = list(arguments)
    for length in LENGTHS:
        if length in arguments:
            at = arguments.index(length)
            steps = int(arguments[at + 1]) if length == "--steps" else 20
            arguments[at : at + 2] = ["--steps", str(min(steps, 40))]
            break
    else:
        arguments += ["--steps", "20"]
    if "--resume" in arguments:
        return [*arguments, "--quiet"]
    return [*arguments, *added, *([] if "--data" in arguments else ["--data", "my.txt"])]


SOURCE = ROOT / "src" / "openxlstm"


def mapped_files() -> set[Path]:
    """The files of openxlstm that the map in the README names, by themselves or by their folder.

    A folder with lines below it stands for its `__init__.py` alone."""
    block = re.search(
        r"^```\nsrc/openxlstm/\n(.*?)^\S", (ROOT / "README.md").read_text(), re.M | re.S
    )
    assert block is not None
    lines = [(len(line) - len(line.lstrip()), line) for line in block[1].splitlines()]
    found, folders = set(), {0: SOURCE}
    for (depth, line), (next_depth, _) in zip(lines, [*lines[1:], (0, "")], strict=True):
        folder = folders[depth - 2]
        for name in re.split(r"  +", line.strip())[0].split():
            path = folder / name
            assert path.is_dir() if name.endswith("/") else path.is_file(), f"there is no {path}"
            folders[depth] = path
            if path.is_dir():
                inside = path.glob("__init__.py") if next_depth > depth else path.rglob("*")
                found |= set(inside)
            found.add(path)
    return found


def test_the_maps_name_every_file() -> None:
    """The map in the README, and the tables of rooms and of C++ files in CONTRIBUTING."""
    files = {path for suffix in ("py", "cpp", "h") for path in SOURCE.rglob(f"*.{suffix}")}
    own = {SOURCE / name for name in ("__init__.py", "__main__.py", "_version.py")}
    missing = files - mapped_files() - own
    assert not missing, f"the map in the README lacks {sorted(missing)}"
    words = re.findall(r"`([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in files - own}
    assert rooms <= set(words), f"CONTRIBUTING lacks {sorted(rooms - set(words))}"
    patterns = [word.replace("NAME", "*") for word in words]
    unknown = [
        path.name
        for path in (SOURCE / "ops" / "cpu").iterdir()
        if not any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)
    ]
    assert not unknown, f"CONTRIBUTING lacks {unknown}"


def test_there_are_commands_and_code() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 15
    assert sum(len(list(python_blocks(page))) for page in PAGES) > 10


TRACED = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch, while it traces
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:openxlstm runs .* with its slow backend:UserWarning"),
]
QUANTISED = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions:UserWarning"),
]
MARKS = {"ecosystem": TRACED, "customising": QUANTISED, "experiments": pytest.mark.slow}
ECOSYSTEM = ROOT / "docs" / "ecosystem.md"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=MARKS.get(page.stem, [])) for page in PAGES],
    ids=[page.name for page in PAGES],
)
def test_commands_and_code(
    page: Path, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with texts of one's own, one after another, as a reader types them: first the
    commands, then the code, which may read what they left."""
    (tmp_path / "my.txt").write_text(TEXT)
    (tmp_path / "texts").mkdir()
    records = json.dumps({"text": LETTERS}) + "\n"
    (tmp_path / "texts" / "some.jsonl.gz").write_bytes(gzip.compress(100 * records.encode()))
    for words in commands(page):
        many = words[0] == "torchrun"
        world_size = int(words[words.index("--nproc-per-node") + 1]) if many else 1
        arguments = shortened(words[words.index("openxlstm") + 1 :])
        if arguments is not None:
            ended = jobs.run(*arguments, world_size=world_size, folder=tmp_path)
            said = shlex.join(words), ended.errors
            assert ended.codes == [0] * world_size, said
    if page == ECOSYSTEM:
        pytest.importorskip("onnxruntime")
    blocks = list(python_blocks(page))
    if any("runs/demo" in code for code, _ in blocks):  # `make demo` has left it
        train = shortened(["train", "--steps", "20", "--out", "runs/demo"])
        assert train is not None
        assert jobs.run(*train, folder=tmp_path).codes == [0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": page.stem}
    for code, prints in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, str(page), "exec"), names)
        if prints is not None:
            assert printed.getvalue() == prints
    if page == ECOSYSTEM:
        assert len(blocks) >= 5
        assert names["y"].shape == (5, 3, 7, 16)
        assert {path.name for path in tmp_path.iterdir()} >= {"rnn.pt2", "rnn.onnx", "step.onnx"}
