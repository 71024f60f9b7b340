"""The commands as a whole: what they cost to ask, and how they complain."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_cases import cli
from jobs import started

from openxlstm import __version__
from openxlstm.cli.main import COMMANDS

SCRIPTS_RELY_ON = {
    "tokenize": "--out --tokenizer --bpe-vocab-size --field --workers --shard-mb",
    "train": "--data --preset --layers --steps --minutes --seed --val-split --out --resume "
    "--auto-resume --strategy --accumulate",
    "eval": "--data --val-split --window --stream --json",
    "generate": "--prompt --max-tokens --temperature --top-k --top-p --seed",
    "convert": "--from --to --config --out --checkpoint --dtype --shard-size --tokenizer "
    "--allow-unknown",
    "runs": "--sort --json --plot --x --diff --gates",
    "plan": "--preset --tokens --world-size --strategy --batch-size --window --json",
    "bench": "--part --quick --budget --threads --json --plot",
    "experiment": "--list --quick --out --seed --processes --json",
    "info": "",
}
"""Names that never change."""

WHAT_IS_LOADED = """
import json, sys
from openxlstm.cli.main import run
loaded = []
for arguments in json.loads(sys.argv[1]):
    try:
        code = run(arguments)
    except SystemExit as end:
        code = end.code
    loaded.append([code, sorted({"torch", "matplotlib", "safetensors"} & set(sys.modules))])
print(json.dumps(loaded), file=sys.stderr)
"""


def test_asking_for_help_loads_neither_torch_nor_matplotlib() -> None:
    """Nor does a mistake that is seen at once: an answer takes no seconds."""
    asked = [[], ["--help"], ["-h"], ["help"], ["--version"]]
    asked += [[command, "--help"] for command in COMMANDS]
    asked += [["train", "--list-presets"], ["experiment"], ["experiment", "--list"]]
    wrong = [["fly"], ["train", "--wings", "2"], ["train", "--preset", "x"], ["generate"]]
    wrong += [["runs", "nowhere"], ["runs", "--plot", "curves.pdf"]]
    wrong += [["bench", "--budget", "0"], ["bench", "--plot", "bars.svg"]]
    wrong += [["experiment", "alchemy"], ["experiment", "parity", "--processes", "0"]]
    done = subprocess.run(
        [sys.executable, "-c", WHAT_IS_LOADED, json.dumps(asked + wrong)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = [[0, []]] * len(asked) + [[2, []]] * len(wrong)
    assert json.loads(done.stderr.splitlines()[-1]) == expected


def test_the_script_is_installed() -> None:
    script = Path(sys.executable).with_name("openxlstm")
    if not script.exists():
        pytest.skip("openxlstm is on the path in another way")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"openxlstm {__version__}\n"
    done = subprocess.run([script, "fly"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("openxlstm: there is no command 'fly'")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]], ids=str)
def test_help_names_every_command(arguments: list[str]) -> None:
    result = cli(*arguments)
    assert (result.code, result.err) == (0, "")
    for command, about in COMMANDS.items():
        assert f"  {command}" in result.out
        assert about in result.out


def test_version() -> None:
    result = cli("--version")
    assert (result.code, result.out, result.err) == (0, f"openxlstm {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_names_what_scripts_rely_on(command: str) -> None:
    result = cli(command, "--help")
    assert (result.code, result.err) == (0, "")
    for option in [*SCRIPTS_RELY_ON[command].split(), "--quiet", "--verbose", "-v", "-q"]:
        assert f"{option} " in result.out or f"{option}," in result.out, option


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("fly", f"there is no command 'fly'; there are: {', '.join(COMMANDS)}"),
        ("--fly", "'--fly'"),
        ("train --wings 2", "--wings"),
        ("train --steps many", "--steps"),
        ("train --steps 1.5", "--steps"),
        ("train --minutes soon", "--minutes"),
        ("train --seed", "--seed"),
        ("train --val-split middle", "--val-split"),
        ("train --sampling bpe", "--sampling"),
        ("train something", "something"),
        ("eval", "PATH"),
        ("eval run --window x", "--window"),
        ("eval run --part best", "--part"),
        ("eval run other", "other"),
        ("generate", "PATH"),
        ("generate run --max-tokens x", "--max-tokens"),
        ("generate run --temperature hot", "--temperature"),
        ("generate run --checkpoint first", "--checkpoint"),
        ("runs --sort size", "--sort"),
        ("runs --x hours", "--x"),
        ("runs --plot curves.pdf", "must end in .png or .svg"),
        ("bench now", "now"),
        ("bench --part cell", "--part"),
        ("bench --budget soon", "--budget"),
        ("info now", "now"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_wrong_call_is_one_line(arguments: str, names: str, encoding: str) -> None:
    """Also where the terminal has no box-drawing characters, which tyro then does without."""
    result = cli(*arguments.split(), encoding=encoding)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("openxlstm: ")
    assert result.err.count("\n") == 1
    assert names in result.err
    assert "---" not in result.err, "nothing is left of the box"
    assert "helptext" not in result.err


@pytest.mark.parametrize("columns", ["20", "40", "300"])
def test_a_narrow_terminal_breaks_no_line(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = cli("train", "--wings", 2)
    assert result.err.startswith("openxlstm: Unrecognized options: --wings, 2; see ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("option", ["-v", "--verbose"])
def test_verbose_shows_where_an_error_came_from(option: str) -> None:
    result = cli("generate", "nowhere", option)
    assert result.code == 2
    first, *_, last = result.err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last == "openxlstm: nowhere is not a model's folder: it does not exist"
    quiet = cli("generate", "nowhere")
    assert quiet.err == last + "\n"


def test_info() -> None:
    result = cli("info")
    assert (result.code, result.err) == (0, "")
    assert re.search(rf"^openxlstm +{__version__} ", result.out, re.MULTILINE)
    for word in ("torch", "threads", "mlstm", "slstm", "causal_conv", "runs", "available"):
        assert word in result.out
    table = cli("info", "--quiet").out
    assert "python" not in table
    assert table.strip() in result.out


def test_a_terminal_without_unicode() -> None:
    """Help has an ellipsis in it, a text may have anything: neither is worth a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", "from openxlstm.cli import main; main()", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout.startswith("usage: openxlstm COMMAND [OPTION ")


def test_a_reader_who_has_seen_enough(trained: Path) -> None:
    """`openxlstm generate … | head`: no complaint about the pipe."""
    command = [sys.executable, "-m", "openxlstm", "generate", trained, "--max-tokens", -1, "-q"]
    with started(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(20)) == 20
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0
