"""Folders in the formats of others."""

from pathlib import Path

import pytest
from interop_cases import LARGE, PAPER, random_model, weights_of

from openxlstm.config import ModelConfig
from openxlstm.interop.writing import write_checkpoint


@pytest.fixture
def nxai(tmp_path: Path) -> Path:
    """A folder of NX-AI's xlstm, an mLSTM and an sLSTM block."""
    config = ModelConfig.from_options(**PAPER)
    write_checkpoint(tmp_path / "nxai", config, weights_of(random_model(config)), "nxai")
    return tmp_path / "nxai"


@pytest.fixture
def nxai_large(tmp_path: Path) -> Path:
    """A folder of NX-AI's xlstm_large."""
    config = ModelConfig.from_options(**LARGE)
    write_checkpoint(tmp_path / "large", config, weights_of(random_model(config)), "nxai")
    return tmp_path / "large"


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """A folder of Hugging Face's."""
    config = ModelConfig.from_options(**LARGE)
    write_checkpoint(tmp_path / "hf", config, weights_of(random_model(config)), "hf")
    return tmp_path / "hf"
