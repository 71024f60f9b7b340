"""Builds the native CPU backend, if this machine can; without it openxlstm installs all the same.

One extension serves every Python from 3.11 on and every torch from 2.10 on: it uses Python's
limited API and torch's stable ABI. Everything else about the package is in pyproject.toml.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/openxlstm/ops/cpu")
NATIVE = "openxlstm.ops._native"

# `make sanitize` asks for a slow extension that stops at the first mistake with memory. Flags that
# Python was built with may make overflow wrap, which would hide it.
SANITIZE = os.environ.get("OPENXLSTM_SANITIZE") == "1"
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if SANITIZE else []
OPTIMIZE = ["-O1", "-g1", "-fno-omit-frame-pointer", "-fno-wrapv"] if SANITIZE else ["-O3", "-g0"]


class OptionalBuild(build_ext):
    """Where the extension cannot be built, leaves a note in the package for `openxlstm info`."""

    def build_extension(self, ext: Extension) -> None:
        # Beside what is built, for a wheel, and in the source, for an editable install.
        folders = (Path(self.get_ext_fullpath(ext.name)).parent, SOURCES.parent)
        notes = [folder / "_native_missing.txt" for folder in folders]
        try:
            self._add_torch(ext)
            super().build_extension(ext)
            for note in notes:
                note.unlink(missing_ok=True)
        except Exception as error:  # whatever a compiler, or its absence, may raise
            if SANITIZE:
                raise
            reason = reason_of(error)
            self.warn(f"openxlstm installs without its native CPU backend: {reason}")
            for note in notes:
                note.parent.mkdir(parents=True, exist_ok=True)
                note.write_text(f"it could not be built: {reason}\n", encoding="utf-8")

    def _add_torch(self, ext: Extension) -> None:
        try:
            import torch
        except ImportError:
            raise RuntimeError("torch was not there to build against") from None
        compilers = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
        if not any(shutil.which(compiler) for compiler in compilers):
            raise RuntimeError("no C++ compiler was found")
        root = Path(torch.__file__).parent
        ext.include_dirs.append(str(root / "include"))
        ext.library_dirs.append(str(root / "lib"))
        ext.libraries.append("torch_cpu")


def reason_of(error: Exception) -> str:
    """Why a build failed, in one line."""
    failed = error.__context__
    if isinstance(failed, subprocess.CalledProcessError):  # which would show the whole command
        return f"command {failed.cmd[0]!r} failed with exit code {failed.returncode}"
    return " ".join(str(error).split()) or type(error).__name__


extension = Extension(
    NATIVE,
    sources=sorted(str(source) for source in SOURCES.glob("*.cpp")),
    depends=[str(header) for header in SOURCES.glob("*.h")],
    define_macros=[
        ("Py_LIMITED_API", "0x030b0000"),
        ("TORCH_TARGET_VERSION", "0x020a000000000000"),
        *([("OPENXLSTM_SANITIZE", "1"), ("_GLIBCXX_ASSERTIONS", "1")] if SANITIZE else []),
    ],
    extra_compile_args=["-std=c++20", "-fvisibility=hidden", "-Wno-psabi", *OPTIMIZE, *CHECKS],
    extra_link_args=[*([] if sys.platform == "darwin" else ["-Wl,--as-needed"]), *CHECKS],
    language="c++",
    py_limited_api=True,
    optional=not SANITIZE,  # an editable install then does without the file
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": OptionalBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
