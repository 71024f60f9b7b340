"""Peers that are here, that are not, and that do not work."""

import math
from pathlib import Path

import pytest
import torch

from openxlstm.bench import op_speed, peers, training_speed
from openxlstm.bench.peers import Absent


def test_not_installed() -> None:
    def make() -> None:
        raise AssertionError("nothing to make it of")

    assert peers.find("no_such_package_at_all", make) == Absent("not installed")


def test_what_was_made_is_returned() -> None:
    assert peers.find("json", lambda: 42) == 42


def test_a_broken_one_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_peer.py").write_text("raise ImportError('needs another\\nand more')\n")
    monkeypatch.syspath_prepend(tmp_path)

    def make() -> None:
        import broken_peer  # noqa: F401  # pyright: ignore[reportMissingImports]

    assert peers.find("broken_peer", make) == Absent("does not run: ImportError: needs another")


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PACKAGES", ("torch", "no_such_package_at_all", "json"))
    assert peers.versions() == {"torch": torch.__version__, "json": "unknown"}


def test_nxai_ops() -> None:
    pytest.importorskip("xlstm")
    pytest.importorskip("mlstm_kernels")
    for comparison, judge in (
        (op_speed.mlstm_comparison(2, 2, 64, 16), "parallel"),
        (op_speed.slstm_comparison(2, 9, 2, 8), "cell"),
    ):
        verdict = comparison.check()
        assert verdict.right
        assert verdict.words.endswith(f"NX-AI {judge}")
        assert [entry.name for entry in comparison.entries if entry.absent] == []
        for repetition in comparison.repetitions.values():
            repetition()


def test_nxai_models() -> None:
    pytest.importorskip("xlstm")
    for layers in training_speed.STACKS:
        theirs = peers.nxai_model(layers, 65, 128, 4, context_length=16)
        assert training_speed.size(theirs) == training_speed.size(
            training_speed.openxlstm_model(layers)
        )
    tokens = peers.nxai_generate(peers.nxai_model("ms", 65, 64, 4, context_length=16), 5)
    assert len(tokens) == 5


def test_hugging_face_models() -> None:
    pytest.importorskip("transformers")
    model = peers.hugging_face_model(training_speed.BLOCKS, 65, 512, 4, "inference")
    assert training_speed.size(model) == training_speed.size(training_speed.large_model(512))
    assert len(peers.hugging_face_generate(model.eval(), 3)) == 3
    model = peers.hugging_face_model(2, 65, 128, 4, "train")
    step = training_speed.training_step(model)
    assert math.isfinite(step())
