"""Options of `openxlstm train` and `plan`: every field of every configuration is one."""

import itertools
import json
from typing import Any

import pytest
from cli_cases import cli
from hypothesis import given, settings
from hypothesis import strategies as st

from openxlstm.cli import plan, train_options
from openxlstm.cli.config_options import fields_of, flag
from openxlstm.cli.train_options import (
    CONFIGS,
    GROUPS,
    compute_config,
    initial_config,
    new_configs,
    parse_options,
    resumed_config,
)
from openxlstm.config import ComputeConfig, TrainConfig
from openxlstm.errors import UserError
from openxlstm.lm.presets import get_preset
from openxlstm.strict import field_docs

FRACTIONS = st.sampled_from([0.0625, 0.25, 0.5])
WIDTHS = st.sampled_from([64, 128])
ANY: dict[str, st.SearchStrategy[Any]] = {
    "embedding_dim": WIDTHS, "num_heads": st.sampled_from([1, 2]), "bias": st.booleans(),
    "layers": st.text("m", min_size=1, max_size=9), "final_norm": st.booleans(),
    "dropout": FRACTIONS, "embedding_dropout": FRACTIONS, "tie_weights": st.booleans(),
    "dropout_kind": st.sampled_from(["elements", "channels"]),
    "num_positions": st.integers(0, 9), "logit_soft_cap": FRACTIONS,
    "data": st.lists(st.sampled_from("ab"), min_size=2, max_size=2).map(tuple),
    "weights": st.lists(FRACTIONS, min_size=2, max_size=2).map(tuple), "field": st.just("body"),
    "tokenizer": st.sampled_from(["byte", "bpe"]), "bpe_vocab_size": st.integers(257, 999),
    "val_fraction": FRACTIONS, "val_split": st.sampled_from(["first", "last"]),
    "sampling": st.sampled_from(["windows", "streams"]), "batch_size": st.integers(1, 9),
    "window": st.integers(9, 20), "first_window": st.integers(1, 9),
    "eval_window": st.integers(1, 9), "reset_at_documents": st.booleans(),
    "steps": st.integers(1, 9), "tokens": st.integers(1, 9), "minutes": FRACTIONS,
    "seed": st.integers(0, 9), "learning_rate": st.sampled_from([0.5, 1e-3]),
    "min_learning_rate": st.just(1e-5), "schedule": st.sampled_from(["linear", "constant"]),
    "warmup": FRACTIONS, "decay_steps": st.integers(1, 9), "weight_decay": FRACTIONS,
    "beta1": FRACTIONS, "beta2": FRACTIONS, "clip_norm": FRACTIONS, "ema_decay": FRACTIONS,
    "nonfinite": st.sampled_from(["stop", "skip"]), "eval_every": st.integers(1, 9),
    "eval_batches": st.integers(1, 9), "save_every": st.integers(1, 9),
    "keep_checkpoints": st.integers(1, 9), "strategy": st.sampled_from(["ddp", "fsdp"]),
    "accumulate": st.integers(1, 9), "precision": st.sampled_from(["float32", "bfloat16"]),
    "recompute_blocks": st.booleans(), "compile": st.booleans(),
}  # fmt: skip
"""A valid value of every option that is a configuration's field, those of blocks apart."""
BLOCKS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "paper": {
        "mlstm_proj_factor": st.just(1.5), "mlstm_qkv_block_size": st.sampled_from([2, 8]),
        "mlstm_conv_kernel_size": st.integers(0, 3), "mlstm_eps": FRACTIONS,
        "slstm_ff_factor": FRACTIONS, "slstm_conv_kernel_size": st.integers(0, 3),
        "slstm_forget_gate": st.just("exp"), "slstm_recurrent_init": st.just("uniform"),
    },
    "large": {
        "qk_dim_factor": FRACTIONS, "v_dim_factor": FRACTIONS, "ff_factor": FRACTIONS,
        "ff_multiple": st.integers(1, 9), "norm_eps": FRACTIONS, "gate_soft_cap": FRACTIONS,
        "eps": FRACTIONS,
    },
}  # fmt: skip


def typed(options: dict[str, Any]) -> list[str]:
    """Options as a user types them."""
    words = []
    for name, value in options.items():
        words += [flag(name), *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def test_every_field_is_an_option() -> None:
    """But for the size of the vocabulary, which is the tokenizer's."""
    fields = {name for cls in CONFIGS for name in cls.names()} - {"kind", "vocab_size", "sources"}
    covered = {*ANY, "block", *itertools.chain(*BLOCKS.values())}
    assert covered == fields | {"data"}
    listed = list(itertools.chain(*GROUPS.values()))
    assert len(listed) == len(set(listed))
    assert set(listed) == covered | set(vars(train_options.Options()))


@pytest.mark.parametrize("kind", BLOCKS)
@settings(max_examples=10)
@given(data=st.data())
def test_options_land_in_the_configurations(kind: str, data: st.DataObject) -> None:
    """Every one that is given, and nothing else changes; JSON brings all of them back."""
    options = data.draw(st.fixed_dictionaries({}, optional={**ANY, **BLOCKS[kind]}))
    options |= {"block": kind, "layers": options.get("layers", "m")}
    options |= {"data": options.get("data", ("a", "b")), "window": options.get("window", 16)}
    _, given_options = parse_options(typed(options))
    assert given_options == options
    preset = get_preset("demo")
    configs = *new_configs(given_options, preset), compute_config(given_options)
    before = preset.model.replace(block=kind, layers="m"), preset.data, preset.train
    expected = {"embedding_dropout": options.get("dropout", 0.0), **options}
    for config, default in zip(configs, (*before, ComputeConfig()), strict=True):
        for name, value in fields_of(config).items():
            is_length = name == "minutes" and {"steps", "tokens"} & set(options)
            other = None if is_length else fields_of(default)[name]
            assert value == expected.get(name, other), name
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", ["tie_weights", "recompute_blocks"])
def test_a_boolean_with_and_without_a_value(name: str) -> None:
    for words, value in (((), True), (("True",), True), (("False",), False)):
        assert parse_options([flag(name), *words, "--seed", "1"])[1][name] is value
    for words in (("maybe",), ("True", "False")):
        with pytest.raises(UserError):
            parse_options([flag(name), *words])


def test_another_blocks_option_is_an_error() -> None:
    for command in ("train", "plan"):
        result = cli(command, "--eps", "0.1", "--preset", "best")
        assert result.code == 2
        assert result.err == (
            "openxlstm: --eps is an option of --block large, but the block is paper\n"
        )


def test_help_shows_the_values_of_a_preset() -> None:
    """And the documentation of every field, once."""
    for command, groups in (("train", GROUPS), ("plan", plan.GROUPS)):
        words = " ".join(cli(command, "--help", "--preset", "xlstm-7b").out.split("│"))
        words = " ".join(words.split())
        assert "(xlstm-7b: 4096)" in words
        for title, names in groups.items():
            assert f"{title} options" in words
            assert all(flag(name) in words for name in names)
    docs = field_docs(TrainConfig)
    assert set(docs) == set(TrainConfig.names())
    assert all(docs.values())


def test_what_may_change_when_a_run_is_resumed() -> None:
    preset = get_preset("demo")
    recorded = preset.model, preset.data, preset.train

    def resumed(*words: str) -> TrainConfig:
        options, given_options = parse_options(words)
        return resumed_config(
            options, given_options, preset="demo", init_from=None, configs=recorded
        )

    assert resumed() == preset.train
    same = typed({"layers": "ms", "learning_rate": preset.train.learning_rate})
    assert resumed(*same, "--preset", "demo", "--accumulate", "2") == preset.train
    longer = resumed("--steps", "900", "--save-every", "5")
    assert longer == preset.train.replace(steps=900, minutes=None, save_every=5)
    for words in (
        ("--layers", "m"), ("--mlstm-eps", "0.5"), ("--eps", "0.5"), ("--window", "9"),
        ("--seed", "9"), ("--data", "x"), ("--preset", "best"), ("--init-from", "x"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{words[0]} cannot change in a run that is resumed"):
            resumed(*words)


def test_what_may_change_in_a_run_that_starts_from_weights() -> None:
    model = get_preset("demo").model
    changed = initial_config({"dropout": 0.5, "dropout_kind": "channels", "layers": "ms"}, model)
    assert changed == model.replace(dropout=0.5, embedding_dropout=0.5, dropout_kind="channels")
    for name, value in (("layers", "m"), ("slstm_ff_factor", 2.0), ("tokenizer", "bpe")):
        with pytest.raises(UserError, match=f"{flag(name)} cannot change with --init-from"):
            initial_config({name: value}, model)
