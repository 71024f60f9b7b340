"""The Python in docs/ecosystem.md runs, block after block, as a reader types it."""

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

PAGE = Path(__file__).parents[1] / "docs" / "ecosystem.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, while it traces
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.:FutureWarning")
@pytest.mark.filterwarnings("ignore:openxlstm runs .* with its slow backend:UserWarning")
def test_python_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["y"].shape == (5, 3, 7, 16)
    assert {path.name for path in tmp_path.iterdir()} >= {"rnn.pt2", "rnn.onnx", "step.onnx"}
