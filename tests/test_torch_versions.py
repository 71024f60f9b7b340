"""The op and layer suites with the lowest torch that `pyproject.toml` claims, and with the newest.

`make slow` runs them. Each makes an environment of its own and builds a copy of the source in it,
which takes minutes and gigabytes. They are skipped where no registry has torch.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from test_build import ROOT, copy_source, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OTHERS = [name for name in PROJECT["dependencies"] if not name.startswith("torch")]
TOOLS = ["setuptools>=77", "wheel", "hypothesis", "pytest", "pytest-timeout"]
SUITES = ["tests/ops", "tests/nn"]


def lowest() -> str:
    """The lower bound of torch."""
    (bound,) = (
        re.fullmatch(r"torch>=([\d.]+)", name)
        for name in PROJECT["dependencies"]
        if "torch" in name
    )
    assert bound is not None
    return f"torch=={bound[1]}.*"


@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_ops_and_layers(which: str, tmp_path: Path) -> None:
    torch = lowest() if which == "lowest" else "torch"
    new = str(tmp_path / "environment/bin/python")
    run(tmp_path, sys.executable, "-m", "venv", "environment")
    install = [new, "-m", "pip", "install", "--quiet", torch, *OTHERS, *TOOLS]
    installed = subprocess.run(install, text=True, capture_output=True, check=False)
    if installed.returncode != 0:
        pytest.skip(f"{torch} could not be installed: {installed.stderr.strip().splitlines()[-1]}")
    source = copy_source(tmp_path / "source")
    run(source, new, "setup.py", "build_ext", "--inplace", "--parallel", "2")
    assert not (source / "src/openxlstm/ops/_native_missing.txt").exists()
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    run(source, new, "-m", "pytest", *options, *SUITES, PYTHONPATH=str(source / "src"))
    shutil.rmtree(tmp_path / "environment")
