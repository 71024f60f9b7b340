"""`openxlstm plan`: a table for people, one object for programs, and nothing allocated."""

import json
import subprocess
import sys
from typing import Any

import pytest
from cli_cases import cli

from openxlstm.lm.presets import get_preset

SMALL = ("--preset", "fast", "--tokens", "1e6", "--layers", "s", "--embedding-dim", "32")


def planned(*options: str) -> dict[str, Any]:
    result = cli("plan", *options, "--json")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1
    return json.loads(result.out)


def test_the_seven_billion() -> None:
    result = cli("plan", "--preset", "xlstm-7b")
    assert (result.code, result.err) == (0, "")
    for words in (
        "6,865,424,896", "32 × m", "134.5 MB", "2,306,867,200,000", "550,000", "128 ranks, fsdp",
        "blocks recomputed", "4 × 8192 tokens", "27.46 GB", "22.8 days", "arXiv:2503.13427",
    ):  # fmt: skip
        assert words in result.out


def test_json() -> None:
    values = planned(
        *SMALL, "--world-size", "8", "--strategy", "fsdp", "--batch-size", "16", "--window",
        "32", "--tokens-per-second", "1000", "--ema", "True", "--precision", "bfloat16",
    )  # fmt: skip
    assert values["model"]["layers"] == "s"
    assert values["model"]["embedding_dim"] == 32
    assert (values["batch_size"], values["window"], values["world_size"]) == (16, 32, 8)
    assert values["compute"]["strategy"] == "fsdp"
    assert values["compute"]["precision"] == "bfloat16"
    assert values["steps"] == 1954
    assert values["seconds"] == 1000
    assert values["rate"] == "as given"
    assert values["memory"]["gathered"] > 0
    assert values["memory"]["average"] > 0


def test_a_known_rate_is_for_the_recipe_as_it_is() -> None:
    measured = get_preset("best").measured
    assert measured is not None
    values = planned("--preset", "best")
    assert values["tokens_per_second"] == measured.tokens_per_second
    assert values["seconds"] == pytest.approx(60 * measured.minutes)
    assert planned("--preset", "best", "--embedding-dim", "96")["seconds"] is None
    assert planned("--preset", "best", "--window", "96")["rate"] is None
    twice = planned("--preset", "xlstm-7b", "--world-size", "256")
    assert twice["tokens_per_second"] == 256 * 9150


def test_a_rate_of_devices() -> None:
    values = planned(
        "--preset", "xlstm-7b", "--flops-per-second", "989e12", "--mfu", "0.5",
    )  # fmt: skip
    assert values["flops_per_second_of_rank"] == pytest.approx(494.5e12)
    assert values["rate"] == "50% of 9.89e+14 FLOP/s per rank"


def test_without_a_rate_the_time_is_unknown() -> None:
    result = cli("plan", *SMALL)
    assert result.code == 0
    assert "unknown" in result.out
    assert "--tokens-per-second" in result.out


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_measure_trains_for_some_steps(quiet: tuple[str, ...]) -> None:
    options = ("--batch-size", "4", "--world-size", "2", "--window", "8", "--threads", "1")
    result = cli("plan", *SMALL, *options, "--measure", "--json", *quiet)
    assert result.code == 0
    assert ("step 6 of 6" in result.err) == (not quiet)
    values = json.loads(result.out)
    assert values["rate"] == "measured here"
    assert values["tokens_per_second"] > 0
    assert values["seconds"] == pytest.approx(1e6 / values["tokens_per_second"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--preset", "nonsense"), "there is no preset 'nonsense'"),
        (("--preset", "demo"), "give the number of tokens to train"),
        ((*SMALL, "--tokens-per-second", "1", "--measure"), "give one"),
        ((*SMALL, "--tokens-per-second", "0"), "tokens-per-second must be positive"),
        (("--preset", "fast", "--tokens", "0"), "tokens must be 1 or more"),
        (("--preset", "fast", "--tokens", "nan"), "tokens must be 1 or more"),
        (("--preset", "fast", "--tokens", "inf"), "tokens must be 1 or more"),
        ((*SMALL, "--flops-per-second", "-1"), "flops-per-second must be positive"),
        ((*SMALL, "--flops-per-second", "1e12", "--mfu", "2"), "mfu must be in (0, 1]"),
        ((*SMALL, "--world-size", "7"), "multiple of 7"),
        ((*SMALL, "--world-size", "0"), "world_size must be positive"),
        ((*SMALL, "--accumulate", "0"), "accumulate must be positive"),
        ((*SMALL, "--block", "large"), "block='large' has no sLSTM"),
        (("--preset", "xlstm-7b", "--measure"), "needs at least 109.8 GB"),
    ],
    ids=" ".join,
)
def test_mistakes_end_in_one_line(options: tuple[str, ...], words: str) -> None:
    result = cli("plan", *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("openxlstm: ")
    assert result.err.count("\n") == 1
    assert words in result.err


def test_help_waits_for_no_torch() -> None:
    code = "import sys, openxlstm.cli.plan; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
