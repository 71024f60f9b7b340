"""Estimates of a training run's arithmetic, memory, steps and time.

The formulas, and their results for xLSTM-7B beside its authors' figures, are in docs/planning.md.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from openxlstm.config import ComputeConfig, ModelConfig
from openxlstm.lm.cost import training_flops_per_token
from openxlstm.lm.memory import (
    FLOAT,
    Memory,
    activation_bytes,
    summarize_unbuilt,
    training_memory,
)
from openxlstm.strict import require


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A model, its training data, and the number of ranks."""

    model: ModelConfig
    tokens: int
    """Tokens to train on."""
    batch_size: int
    """Sequences per batch of the whole job, which the ranks share."""
    window: int
    """Tokens per sequence."""
    world_size: int = 1
    """Number of ranks: processes, each with its own device or cores."""
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    """Precision, distribution and accumulation."""
    average: bool = False
    """Whether a moving average of the weights is kept."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "window", "world_size"):
            require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        parts = self.world_size * self.compute.accumulate
        require(
            self.batch_size % parts == 0,
            f"a batch of {self.batch_size} sequences cannot be shared evenly by {self.world_size} "
            f"ranks in {self.compute.accumulate} parts each: choose a batch size that is a "
            f"multiple of {parts}",
        )

    @property
    def rows_at_once(self) -> int:
        """Sequences that a rank computes at once."""
        return self.batch_size // self.world_size // self.compute.accumulate


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The estimates of a job."""

    parameters: int
    """Exact number of the model's parameters."""
    parts: dict[str, int]
    """Parameters by part of the model."""
    state_bytes: int
    """Bytes of one sequence's state, for any length."""
    training_flops_per_token: int
    """FLOPs of forward and backward pass, as `lm.cost` counts them."""
    training_flops: int
    """FLOPs of the whole run."""
    tokens: int
    steps: int
    tokens_per_parameter: float
    memory: Memory
    """Memory of one rank."""
    weights_file_bytes: int
    """Size of `model.safetensors`."""
    checkpoint_bytes: int
    """Size of a checkpoint to resume from: weights, moments, and the moving average."""
    tokens_per_second: float | None = None
    """Throughput of the whole job, if it is known."""
    seconds: float | None = None
    """Time of the whole run at that throughput."""
    flops_per_second_of_rank: float | None = None
    """FLOP/s of one rank at that throughput."""

    def to_dict(self) -> dict[str, Any]:
        """The estimates as JSON-serialisable values."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        return values


def plan_training(job: TrainingJob, tokens_per_second: float | None = None) -> TrainingPlan:
    """Estimates `job`, with the throughput of the whole job if it is given; allocates nothing."""
    summary, flops = summarize_unbuilt(job.model), training_flops_per_token(job.model)
    activations = activation_bytes(job.model, job.rows_at_once, job.window, job.compute)
    rate, weights = tokens_per_second, FLOAT * summary.num_parameters
    return TrainingPlan(
        parameters=summary.num_parameters,
        parts=_join_blocks(summary.parts),
        state_bytes=summary.state_bytes,
        training_flops_per_token=flops,
        training_flops=flops * job.tokens,
        tokens=job.tokens,
        steps=-(-job.tokens // (job.batch_size * job.window)),
        tokens_per_parameter=job.tokens / summary.num_parameters,
        memory=training_memory(
            summary,
            activations,
            strategy=job.compute.strategy,
            world_size=job.world_size,
            average=job.average,
        ),
        weights_file_bytes=weights,
        checkpoint_bytes=weights * (4 if job.average else 3),
        tokens_per_second=rate,
        seconds=None if rate is None else job.tokens / rate,
        flops_per_second_of_rank=None if rate is None else flops * rate / job.world_size,
    )


def rate_of_devices(job: TrainingJob, flops_per_second: float, mfu: float) -> float:
    """Tokens per second of a job whose ranks each reach a share `mfu` of `flops_per_second`.

    Raises:
        UserError: unless `flops_per_second` is positive and `mfu` in (0, 1].
    """
    require(flops_per_second > 0, f"flops-per-second must be positive, not {flops_per_second}")
    require(0 < mfu <= 1, f"mfu must be in (0, 1], not {mfu}")
    return job.world_size * flops_per_second * mfu / training_flops_per_token(job.model)


def _join_blocks(parts: dict[str, int]) -> dict[str, int]:
    """Parameters by part, with all blocks of one kind as one part."""
    kinds = Counter(name.partition(" (")[2] for name in parts if name.startswith("block "))
    joined: Counter[str] = Counter()
    for name, count in parts.items():
        kind = name.partition(" (")[2]
        joined[f"{kinds[kind]} × {kind.removesuffix(')')} block" if kind else name] += count
    return dict(joined)
