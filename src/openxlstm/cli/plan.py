"""`openxlstm plan`: what a training run takes, before it starts."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openxlstm.cli.config_options import Boolean, changed, fields_of, parse_with_configs
from openxlstm.cli.options import Quiet, Verbose
from openxlstm.cli.train_options import MODEL_CONFIGS, MODEL_GROUPS, short, shown_preset
from openxlstm.config import ComputeConfig, DataConfig, TrainConfig
from openxlstm.errors import UserError
from openxlstm.lm.presets import Preset, get_preset
from openxlstm.runs.loading import size_in_words

if TYPE_CHECKING:
    from openxlstm.lm.plan import TrainingJob, TrainingPlan

GIVEN = "as given"
MEASURE_STEPS = 5
"""Steps that --measure times, after one that is not."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Estimates what a training run takes: parameters, FLOPs, steps, memory per rank and, from a
    throughput, time. Options that are not given have the values of the preset, which are shown in
    parentheses. Nothing is allocated, and only --measure computes. The formulas are in
    docs/planning.md."""

    preset: str = "demo"
    """Preset to start from, up to xlstm-7b."""
    tokens: float | None = None
    """Tokens to train on, e.g. 1e9; by default the preset's."""
    world_size: int | None = None
    """Ranks that share the work; by default those of the preset, or 1."""
    ema: Boolean = None
    """Whether a moving average of the weights is kept."""
    tokens_per_second: float | None = None
    """Known throughput of all ranks together."""
    flops_per_second: float | None = None
    """Peak FLOP/s of one rank's device, e.g. 989e12 for an H100 in bfloat16."""
    mfu: float = 0.4
    """Share of --flops-per-second that training reaches (model FLOPs utilization)."""
    measure: bool = False
    """Time some training steps of one rank's share on this machine. More ranks are assumed to be
    as fast each."""
    threads: int | None = None
    """Threads per operation in --measure; by default torch's choice."""
    json: bool = False
    """Print one JSON object."""
    quiet: Quiet = False
    """Show no progress of --measure."""
    verbose: Verbose = False
    """Show the traceback of an error."""


GROUPS = {
    "": (
        "preset", "layers", "tokens", "batch_size", "window", "world_size", "json", "quiet",
        "verbose",
    ),
    "throughput": ("tokens_per_second", "flops_per_second", "mfu", "measure", "threads"),
    **MODEL_GROUPS,
    "model": ("vocab_size", *MODEL_GROUPS["model"]),
    "computing": ("strategy", "precision", "accumulate", "recompute_blocks", "ema"),
}  # fmt: skip
"""Titles of groups in the help, and their options."""


def run(arguments: list[str]) -> int:
    name, preset = shown_preset(arguments)
    compute = _default_compute(preset)
    values = fields_of(preset.model) | fields_of(preset.data) | fields_of(compute)
    values["layers"] = short(preset.model.layers)
    configs = *MODEL_CONFIGS, DataConfig, ComputeConfig
    options, given = parse_with_configs(
        Options, "plan", arguments, configs, GROUPS, values=values, source=name
    )
    ways = {
        "--tokens-per-second": options.tokens_per_second is not None,
        "--flops-per-second": options.flops_per_second is not None,
        "--measure": options.measure,
    }
    said = [name for name, is_said in ways.items() if is_said]
    if len(said) > 1:
        raise UserError(f"{' and '.join(said)} give the same throughput: give one")
    if options.tokens_per_second is not None and not 0 < options.tokens_per_second < float("inf"):
        raise UserError(f"tokens-per-second must be positive, not {options.tokens_per_second:g}")

    from openxlstm.lm.plan import plan_training

    preset = get_preset(options.preset)
    job = _job(options, given, preset)
    rate, source = _rate(options, preset, job)
    plan = plan_training(job, rate)
    if options.json:
        values = {
            "preset": options.preset, "model": job.model.to_dict(), "batch_size": job.batch_size,
            "window": job.window, "world_size": job.world_size, "compute": job.compute.to_dict(),
            **plan.to_dict(), "rate": source,
        }  # fmt: skip
        print(json.dumps(values))
    else:
        _print_table(options.preset, job, plan, source)
    return 0


def _default_compute(preset: Preset) -> ComputeConfig:
    return ComputeConfig() if preset.reported is None else preset.reported.compute


def _job(options: Options, given: dict[str, Any], preset: Preset) -> "TrainingJob":
    """The preset's job, changed by the options that are given."""
    from openxlstm.lm.plan import TrainingJob

    world_size = 1 if preset.reported is None else preset.reported.world_size
    return TrainingJob(
        model=changed(preset.model, given),
        tokens=_tokens(options, preset),
        batch_size=given.get("batch_size", preset.data.batch_size),
        window=given.get("window", preset.data.window),
        world_size=world_size if options.world_size is None else options.world_size,
        compute=changed(_default_compute(preset), given),
        average=preset.train.ema_decay > 0 if options.ema is None else options.ema,
    )


def _tokens(options: Options, preset: Preset) -> int:
    """Tokens to train on: as given, or those of the preset.

    Raises:
        UserError: if the preset's length is a time, and its number of tokens is unknown.
    """
    train, data, measured = preset.train, preset.data, preset.measured
    if options.tokens is not None:
        if not 1 <= options.tokens < float("inf"):
            raise UserError(f"tokens must be 1 or more, not {options.tokens:g}")
        return int(options.tokens)
    if train.tokens is not None:
        return train.tokens
    if train.steps is not None:
        return train.steps * data.batch_size * data.window
    if train.minutes is not None and measured is not None and measured.tokens_per_second:
        return int(60 * train.minutes * measured.tokens_per_second)
    raise UserError(
        f"the length of the preset {options.preset} is a time: give the number of tokens to train "
        "on, e.g. --tokens 1e7"
    )


def _rate(options: Options, preset: Preset, job: "TrainingJob") -> tuple[float | None, str | None]:
    """Tokens per second of all ranks together, and the source of this figure; None if unknown.

    The figure of a preset holds for its own model and batches of its own shape, and for any number
    of ranks, which are assumed to be as fast each."""
    from openxlstm.lm.plan import rate_of_devices

    if options.tokens_per_second is not None:
        return options.tokens_per_second, GIVEN
    if options.flops_per_second is not None:
        rate = rate_of_devices(job, options.flops_per_second, options.mfu)
        return rate, f"{options.mfu:.0%} of {options.flops_per_second:.3g} FLOP/s per rank"
    if options.measure:
        return job.world_size * _measure(options, job), "measured here"
    measured, reported = preset.measured, preset.reported
    if job.model != preset.model or job.window != preset.data.window:
        return None, None
    if reported is not None:
        rate = reported.tokens_per_second * job.world_size / reported.world_size
        return rate, f"{reported.source}: {reported.world_size} × {reported.device}"
    if measured is not None and measured.tokens_per_second is not None:
        return job.world_size * measured.tokens_per_second, "measured on two cores of a Zen 5"
    return None, None


def _measure(options: Options, job: "TrainingJob") -> float:
    """Tokens per second of one rank: the median of some training steps on random tokens.

    Raises:
        UserError: if the model cannot be trained in this machine's memory.
    """
    import statistics
    import sys
    from itertools import pairwise

    import torch

    from openxlstm.data.batches import RandomWindows
    from openxlstm.data.tokens import Tokens
    from openxlstm.device import memory_bytes, set_threads
    from openxlstm.lm.memory import check_memory
    from openxlstm.lm.model import LanguageModel
    from openxlstm.train.callback import Callback, Step
    from openxlstm.train.loop import fit

    check_memory(job.model, memory_bytes(), average=job.average)
    set_threads(options.threads)
    rows, seconds = job.batch_size // job.world_size, [0.0]

    class Watch(Callback):
        def on_step(self, step: Step) -> None:
            seconds.append(step.seconds)
            if not options.quiet:
                print(f"openxlstm: step {step.step} of {MEASURE_STEPS + 1}", file=sys.stderr)

    ids = Tokens(torch.randint(job.model.vocab_size, (rows * job.window + 1,)))
    batches = RandomWindows(ids, rows, job.window)
    sample = [next(RandomWindows(ids, 1, 1))]  # a run measures its loss at both ends
    fit(
        LanguageModel(job.model),
        batches,
        TrainConfig(steps=MEASURE_STEPS + 1, ema_decay=0.999 if job.average else 0.0),
        [Watch()],
        compute=job.compute,
        train_sample=sample,
        val_sample=sample,
    )
    times = [after - before for before, after in pairwise(seconds[1:])]
    return rows * job.window / statistics.median(times)


def _print_table(name: str, job: "TrainingJob", plan: "TrainingPlan", source: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    model, compute, memory = job.model, job.compute, plan.memory
    table = Table.grid("", "", "", padding=(0, 2))
    table.columns[1].justify = "right"
    table.add_row(
        "model", name, f"{model.embedding_dim} wide, {short(model.layers)}, {model.block.kind}"
    )
    table.add_row("parameters", f"{plan.parameters:,}")
    for part, count in plan.parts.items():
        table.add_row(f"  {part}", f"{count:,}")
    table.add_row("state", size_in_words(plan.state_bytes), "a sequence, of any length")
    table.add_row()
    ratio = _figures(plan.tokens_per_parameter)
    table.add_row("tokens", f"{plan.tokens:,}", f"{ratio} a parameter (Chinchilla: 20)")
    table.add_row("steps", f"{plan.steps:,}", f"{job.batch_size} × {job.window} tokens each")
    a_token = f"{plan.training_flops_per_token:.3g}"
    table.add_row("FLOPs", f"{plan.training_flops:.3g}", f"{a_token} a token")
    table.add_row()
    ranks = "1 rank" if job.world_size == 1 else f"{job.world_size} ranks, {compute.strategy}"
    again = ", blocks recomputed" if compute.recompute_blocks else ""
    at_once = f"{job.rows_at_once} × {job.window} tokens at once"
    table.add_row(
        "memory of a rank", size_in_words(memory.total), f"{ranks}, {compute.precision}{again}"
    )
    for part, size in vars(memory).items():
        if size:
            note = at_once if part == "activations" else ""
            table.add_row(f"  {part}", size_in_words(size), note)
    half = size_in_words(plan.weights_file_bytes / 2)
    in_memory = f"{half} in bfloat16; as much memory, and a state, to run it"
    table.add_row("model on disk", size_in_words(plan.weights_file_bytes), in_memory)
    table.add_row("checkpoint on disk", size_in_words(plan.checkpoint_bytes))
    table.add_row()
    if plan.seconds is None or plan.flops_per_second_of_rank is None:
        hint = "--tokens-per-second, --flops-per-second, --measure"
        table.add_row("time", "unknown", f"say how fast: {hint}")
    else:
        table.add_row("tokens per second", f"{plan.tokens_per_second:,.0f}", source)
        table.add_row("time", _time(plan.seconds))
        hours, speed = plan.seconds * job.world_size / 3600, plan.flops_per_second_of_rank
        table.add_row("hours of ranks", _figures(hours), f"{speed:.3g} FLOP/s each")
    # What is not a terminal has no width: nothing is folded there.
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else 120
    console.print(table)


def _figures(number: float) -> str:
    """Three figures, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
