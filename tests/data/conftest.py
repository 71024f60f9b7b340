"""What the tests of data share."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Corpora are looked for in an empty place."""
    monkeypatch.delenv("OPENXLSTM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
