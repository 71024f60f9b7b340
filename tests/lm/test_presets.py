"""The recipes that have a name."""

import subprocess
import sys

import pytest

from openxlstm.config import ModelConfig
from openxlstm.errors import UserError
from openxlstm.lm.memory import summarize_unbuilt
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.presets import PRESETS, get_preset


def test_importing_presets_imports_no_torch() -> None:
    code = "import sys, openxlstm.lm.presets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_articles_hyperparameters() -> None:
    """Row 13 of the mission: batch 24, block 124, width 164, "m", AdamW 3e-4, cosine 300 → 1e-5,
    evaluate every 100; and what the article leaves to torch's AdamW."""
    preset = get_preset("article")
    assert (preset.model.embedding_dim, preset.model.layers, preset.model.num_heads) == (
        164,
        "m",
        8,
    )
    assert preset.model.num_positions == 124
    assert preset.data.sources == ("tinyshakespeare",)
    assert (preset.data.batch_size, preset.data.window) == (24, 124)
    assert (preset.data.val_fraction, preset.data.val_split) == (0.1, "first")
    train = preset.train
    assert train.steps == 3333
    assert (train.learning_rate, train.min_learning_rate) == (3e-4, 1e-5)
    assert (train.schedule, train.decay_steps, train.warmup) == ("cosine", 300, 0)
    assert (train.eval_every, train.eval_batches) == (100, 3)
    assert (train.beta1, train.beta2, train.weight_decay) == (0.9, 0.999, 0.01)
    assert train.clip_norm == 0


def test_the_demo_needs_no_network_and_two_minutes() -> None:
    preset = get_preset("demo")
    assert preset.data.sources == ("shakespeare",)
    assert preset.train.minutes == 2
    assert set(preset.model.layers) == {"m", "s"}


def test_the_limits_of_fast_and_best() -> None:
    """The time of nanoGPT's recipe for a CPU; at most 3 M parameters and 40 minutes."""
    assert get_preset("fast").train.minutes == pytest.approx(98 / 60)
    best = get_preset("best")
    assert sum(p.numel() for p in LanguageModel(best.model).parameters()) <= 3_000_000
    assert best.train.minutes is not None
    assert best.train.minutes <= 40


@pytest.mark.parametrize("name", PRESETS)
def test_what_was_measured_is_credible(name: str) -> None:
    """Longer windows, and then a stream, leave less to guess; a text that was read, too. But where
    there are positions, those that were never trained are worse."""
    measured = PRESETS[name].measured
    if measured is None:
        assert PRESETS[name].reported is not None, "somebody ran it"
        return
    losses = [measured.stream, measured.windows_of_256, measured.windows_of_64]
    assert losses == sorted(losses, reverse=PRESETS[name].model.num_positions > 0)
    assert all(1.3 < loss < 2 for loss in losses)
    assert measured.train < measured.windows_of_256
    if (minutes := PRESETS[name].train.minutes) is not None:
        assert measured.minutes == minutes


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_model(name: str) -> None:
    preset = PRESETS[name]
    assert preset.about
    assert "\n" not in preset.about
    assert summarize_unbuilt(preset.model).num_parameters > 100_000
    assert ModelConfig.from_dict(preset.model.to_dict()) == preset.model


def test_an_unknown_preset_names_the_others() -> None:
    with pytest.raises(
        UserError, match="no preset 'dmeo'; choose one of: demo, fast, best, article, xlstm-7b"
    ):
        get_preset("dmeo")
