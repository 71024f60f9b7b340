"""Builds of copies of the source: under sanitizers, by clang, for Arm, a wheel, without a compiler.

`make slow` runs them; they take some minutes. One that needs a tool which is not there is skipped.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[1]
FILES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
LEFT_OUT = ("*.so", "_native_missing.txt", "__pycache__", "*.egg-info", "test_build.py")
NATIVE_TESTS = [
    *(
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests/ops").glob("test_*.py"))
        if "native" in path.read_text(encoding="utf-8")
    ),
    "tests/nn/test_decoder.py",
]
SMOKE = """
import torch
from openxlstm import ops
from openxlstm.ops.native import backend as native

assert native.missing() is None, native.missing()
x, weight = torch.randn(3, 40), torch.randn(40)
expected = ops.layer_norm(x, weight, backend="torch")
torch.testing.assert_close(ops.layer_norm(x, weight, backend="native"), expected)
x, weight = torch.randn(2, 9, 2, 4, 5), torch.randn(2, 4, 5, 5)
expected, _ = ops.slstm(x, weight, backend="torch")
torch.testing.assert_close(ops.slstm(x, weight, backend="native")[0], expected)
"""


def copy_source(to: Path) -> Path:
    """What a build and the tests read, without what was built."""
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, to / folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in FILES:
        shutil.copy(ROOT / name, to)
    return to


def run(cwd: Path, *command: str, **environment: str | None) -> str:
    """What a command prints. A variable of the environment that is None is left out of it."""
    env = {name: x for name, x in (os.environ | environment).items() if x is not None}
    done = subprocess.run(
        command, cwd=cwd, env=env, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-20_000:]}"
    return done.stdout


def python(cwd: Path, *arguments: str, **environment: str | None) -> str:
    return run(cwd, sys.executable, *arguments, **environment)


def build_in_place(source: Path, **environment: str | None) -> None:
    python(source, "setup.py", "build_ext", "--inplace", "--parallel", "2", **environment)
    assert not (source / "src/openxlstm/ops/_native_missing.txt").exists()


def pytest_in(source: Path, *options: str, **environment: str | None) -> None:
    """The native backend's tests, of a package that was built in place."""
    environment |= {"PYTHONPATH": str(source / "src")}
    where = python(source, "-c", "import openxlstm; print(openxlstm.__file__)", **environment)
    assert where.startswith(str(source)), where
    command = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options, *NATIVE_TESTS]
    python(source, *command, **environment)


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("gcc", "g++")
    if sys.platform != "linux" or not Path(_library("libasan.so")).is_file():
        pytest.skip("gcc has no sanitizers here")
    source = copy_source(tmp_path_factory.mktemp("sanitized"))
    build_in_place(source, CC="gcc", CXX="g++", OPENXLSTM_SANITIZE="1")
    return source


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_no_sanitizer_complains(sanitized: Path, isa: str) -> None:
    # What it frees, a sanitizer keeps for a while.
    pytest_in(sanitized, "-k", "not memory_does_not_grow", OPENXLSTM_ISA=isa, **_environment())


@pytest.mark.parametrize("size", [1, 39])
def test_the_sanitizers_are_awake(sanitized: Path, size: int) -> None:
    """A plan whose norm was put elsewhere, where it is too short: only a sanitizer can see that."""
    code = (
        "import torch\n"
        "from openxlstm.ops.native.step import ModelStepWeights, StepPlan, step\n"
        f"norm, short, out = torch.zeros(40), torch.zeros({size}), torch.zeros(1, 40)\n"
        "plan = StepPlan(1, 40, 1, ModelStepWeights(norm=norm), [], out, torch.float32,\n"
        "                num_features=40).pack()\n"
        "old, new = (x.data_ptr().to_bytes(8, 'little') for x in (norm, short))\n"
        "step(plan._replace(words=plan.words.replace(old, new)), torch.randn(1, 40))"
    )
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        python(sanitized, "-c", code, PYTHONPATH=str(sanitized / "src"), **_environment())


def _library(name: str) -> str:
    command = ["gcc", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _environment() -> dict[str, str]:
    """The environment in which Python, which knows of no sanitizer, can load such an extension.

    Leaks are not looked for: Python and torch keep much until the process ends. libstdc++ is there
    from the start, or its exceptions would not be known to the sanitizer.
    """
    return {
        "LD_PRELOAD": f"{_library('libasan.so')} {_library('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def test_clang(tmp_path: Path) -> None:
    """An extension by another compiler, which has code of its own in `simd.h` and `each_isa.h`."""
    need("clang", "clang++")
    source = copy_source(tmp_path)
    build_in_place(source, CC="clang", CXX="clang++")
    pytest_in(source)


@pytest.mark.parametrize(
    "compiler",
    [("clang++", "--target=aarch64-linux-gnu"), ("aarch64-linux-gnu-g++",)],
    ids=lambda x: x[0],
)
def test_arm(compiler: tuple[str, ...], tmp_path: Path) -> None:
    """Compiles, not runs. Python's headers are this machine's, which is good enough for that."""
    need(compiler[0])
    flags = ["-std=c++20", "-fsyntax-only", "-Wno-psabi", "-DPy_LIMITED_API=0x030b0000"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    for folder in (sysconfig.get_path("include"), str(Path(torch.__file__).parent / "include")):
        flags += ["-isystem", folder]
    probe = tmp_path / "probe.cpp"
    probe.write_text("#include <vector>\n", encoding="utf-8")
    command = [*compiler, "-fsyntax-only", str(probe)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("C++'s headers for Arm are not here")
    sources = sorted((ROOT / "src/openxlstm/ops/cpu").glob("*.cpp"))
    assert sources
    for source in sources:
        run(tmp_path, *compiler, *flags, str(source))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a source distribution has in it, unpacked."""
    source = copy_source(tmp_path_factory.mktemp("source"))
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    python(source, "-c", code)
    (archive,) = (source / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(source / "unpacked", filter="data")
    (unpacked,) = (source / "unpacked").iterdir()
    return unpacked


def test_sdist_has_all_that_a_build_reads(sdist: Path) -> None:
    for path in (ROOT / "src").rglob("*"):
        if path.suffix in {".py", ".h", ".cpp", ".typed"}:
            assert (sdist / path.relative_to(ROOT)).is_file(), path
    for name in FILES:
        assert (sdist / name).is_file(), name


def test_wheel_of_the_sdist(sdist: Path, tmp_path: Path) -> None:
    """One file for every Python from 3.11 on, which has all modules and works."""
    need("g++")
    shutil.copytree(sdist, tmp_path / "source")
    command = ["-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps", "-w", "../out"]
    python(tmp_path / "source", *command)
    (wheel,) = (tmp_path / "out").iterdir()
    *_, interpreter, abi, platform = wheel.stem.split("-")
    assert (interpreter, abi) == ("cp311", "abi3")
    assert platform != "any"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    modules = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*.py")}
    assert modules <= names
    assert not {name for name in names if name.endswith("_native_missing.txt")}
    (native,) = (name for name in names if "_native." in name)
    assert native.startswith("openxlstm/ops/_native.abi3")
    python(tmp_path, "-c", SMOKE, PYTHONPATH=str(tmp_path / "installed"))


@pytest.mark.parametrize("compiler", [None, "false"], ids=["none", "broken"])
def test_without_a_compiler(compiler: str | None, tmp_path: Path) -> None:
    """It installs all the same, runs, and says what is missing and why."""
    source = copy_source(tmp_path / "source")
    path = tmp_path / "bin"
    path.mkdir()
    if compiler is not None:
        need(compiler)
        (path / compiler).symlink_to(str(shutil.which(compiler)))
    install = ["-m", "pip", "install", ".", "--no-build-isolation", "--no-deps", "-t", "../out"]
    python(source, *install, PATH=str(path), CC=compiler, CXX=compiler)
    environment = {"PYTHONPATH": str(tmp_path / "out"), "COLUMNS": "200"}
    info = python(tmp_path, "-m", "openxlstm", "info", **environment)
    failed = "command 'false' failed with exit code 1"
    reason = "no C++ compiler was found" if compiler is None else failed
    rows = [line.split(maxsplit=2) for line in info.splitlines() if " native " in line]
    assert rows
    for _, _, answer in rows:
        assert answer.startswith("it could not be built: ")
        assert reason in answer
    smoke = SMOKE.replace("is None, native.missing()", "is not None").replace('"native"', "None")
    python(tmp_path, "-c", smoke, **environment)
