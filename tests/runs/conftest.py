"""A small run, trained from Python without a word on standard output or error."""

import random
from pathlib import Path

import pytest

from openxlstm.config import DataConfig, ModelConfig, TrainConfig
from openxlstm.runs.training import conclude_run, prepare_new_run, train_run
from openxlstm.train.processes import ALONE

DRAW = random.Random(0)
TEXT = "".join(f"the {DRAW.choice(['cat', 'dog', 'hen'])} sat.\n" for _ in range(60))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 4 steps; the tests that share it only read it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "animals.txt").write_text(TEXT)
    prepared = prepare_new_run(
        folder / "run",
        model=ModelConfig(vocab_size=1, embedding_dim=16, num_heads=2, layers="ms"),
        data=DataConfig(sources=(str(folder / "animals.txt"),), batch_size=2, window=8),
        train=TrainConfig(steps=4, eval_every=2, eval_batches=1),
        processes=ALONE,
        preset="small",
    )
    assert not (folder / "run").exists()  # nothing is written before it trains
    result, stopped = train_run(prepared, ALONE)
    assert (result.step, stopped) == (4, False)
    assert conclude_run(prepared, result) == folder / "run" / "loss.png"
    return folder / "run"
