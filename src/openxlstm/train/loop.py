"""The training loop, with evaluations and checkpoints.

B batch · W processes · A parts of a process's share of a batch (gradient accumulation)
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from openxlstm import states
from openxlstm.config import ComputeConfig, TrainConfig
from openxlstm.errors import UserError
from openxlstm.lm.model import LanguageModel
from openxlstm.states import ModelState
from openxlstm.train.callback import Callback, Evaluated, Progress, Step
from openxlstm.train.checkpoint import load_checkpoint, models_of, save_checkpoint
from openxlstm.train.distributed import clip_gradient, sharing, spread
from openxlstm.train.evaluate import BatchLike, evaluate
from openxlstm.train.processes import ALONE, Processes
from openxlstm.train.schedule import learning_rate

PATIENCE = 100
"""Consecutive steps that may be skipped; after more, the weights must be broken."""


class Batches(Protocol):
    """An endless iterator over this process's rows of batches, whose position can be restored.

    Its state is the same in every process, for any number of processes."""

    def __next__(self) -> BatchLike: ...
    def advance(self, share: float) -> None:
        """Receives the share of the run that is done, before each batch."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def fit(
    model: LanguageModel,
    batches: Batches,
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    compute: ComputeConfig | None = None,
    processes: Processes = ALONE,
    train_sample: Iterable[BatchLike] = (),
    val_sample: Iterable[BatchLike] = (),
    carry_state: bool = False,
    folder: Path | None = None,
    resume: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Trains `model` in place with AdamW until the run's steps, tokens or minutes are over.

    Every `config.eval_every` steps, and at the start and the end, the loss on both samples is
    measured. If there is a `folder`, it then gets a checkpoint of the run, and the model if its
    validation loss is the lowest so far. With `config.ema_decay`, the moving average of the weights
    is measured and saved, and `model` has these weights at the end.

    A run of a number of steps or tokens that was stopped or killed, and resumed, ends with the same
    weights, bit for bit, as an uninterrupted one: dropout is seeded in each step with the seed of
    the run, the step and the rank. Several processes get different rows of the same batches, and
    the gradient is that of the whole batch.

    Args:
        model: on the device to train on, the same in every process. With "fsdp" it may be on
            another device.
        batches: training batches.
        config: optimizer, schedule, length and evaluations.
        callbacks: called at every step and evaluation, in the first process.
        compute: precision, and distribution among processes.
        processes: the processes of the job.
        train_sample, val_sample: this process's rows of the batches to evaluate, iterated in each
            evaluation.
        carry_state: whether each batch continues the one before it (truncated backpropagation
            through time: the state is carried, the gradient is not).
        folder: where to save; None saves nothing.
        resume: checkpoint to resume from.
        stop: called once per step; True, in any process, saves after that step and returns.

    Returns:
        the progress of the run.

    Raises:
        UserError: if the loss is not finite, or the checkpoint does not fit.
        OSError: if a checkpoint cannot be written; earlier ones stay intact.
    """
    run = _Run(model, batches, config, callbacks, compute or ComputeConfig(), processes, folder)
    run.carry_state, run.samples = carry_state, (train_sample, val_sample)
    if resume is not None:
        run.load(resume)
    run.start()
    if resume is None:
        run.measure()
        run.save()
    save_every = config.save_every or config.eval_every
    while run.share < 1:
        stopping = run.step(stop)
        at_end = run.share >= 1
        if at_end or run.progress.step % config.eval_every == 0:
            run.measure()
        if at_end or stopping or run.progress.step % save_every == 0:
            run.save()
        if stopping:
            break
    run.finish()
    return run.progress


class _Run:
    """The state of a run, and the operations that `fit` is made of."""

    carry_state: bool
    samples: tuple[Iterable[BatchLike], Iterable[BatchLike]]

    def __init__(
        self, model: LanguageModel, batches: Batches, config: TrainConfig,
        callbacks: Sequence[Callback], compute: ComputeConfig, processes: Processes,
        folder: Path | None,
    ) -> None:  # fmt: skip
        self.batches, self.config, self.callbacks = batches, config, callbacks
        self.compute, self.processes, self.folder = compute, processes, folder
        self.model, self.device = model, next(model.parameters()).device
        if processes.mesh is not None:  # FSDP moves the model there, shard by shard
            self.device = processes.device
        self.averaging, average = _average(model, config.ema_decay)
        self.measured = average or model
        _prepare(model, compute)
        self.module = spread(model, compute.strategy, processes, *filter(None, [average]))
        self.models = models_of(model, average)
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(
            model.parameter_groups(config.weight_decay), lr=config.learning_rate,
            betas=(config.beta1, config.beta2), fused=True,
        )  # fmt: skip
        self.progress, self.clock = Progress(), time.perf_counter()
        self.states: list[ModelState | None] = [None] * compute.accumulate
        self.skipped_in_a_row = 0
        self.wants_model = processes.any(any(callback.wants_model for callback in callbacks))

    def load(self, checkpoint: Path) -> None:
        """Restores the run from a checkpoint."""
        state, values = load_checkpoint(
            checkpoint, self.models, self.optimizer, processes=self.processes
        )
        self.progress = Progress(**values["progress"])
        self.batches.load_state_dict(values["batches"])
        if self.averaging is not None:
            self.averaging.n_averaged.fill_(self.progress.step)
        if state is not None:
            rows = torch.arange(len(states.tensors(state)[0])).chunk(self.compute.accumulate)
            self.states = [states.select(state, part) for part in rows]

    def start(self) -> None:
        if self.processes.is_first:
            for callback in self.callbacks:
                callback.on_start(self.progress)
        self.model.train()
        self.processes.wait()  # for the files that the first one writes
        self.clock = time.perf_counter()

    @property
    def share(self) -> float:
        """Share of the run that is done, by the limit that is reached first."""
        config, progress = self.config, self.progress
        by_steps = progress.step / config.steps if config.steps else 0.0
        by_tokens = progress.tokens / config.tokens if config.tokens else 0.0
        by_clock = progress.seconds / (60 * config.minutes) if config.minutes else 0.0
        return max(by_steps, by_tokens, by_clock)

    def step(self, stop: Callable[[], bool]) -> bool:
        """Does one optimizer step on one batch; returns whether any process is to stop."""
        progress, config = self.progress, self.config
        self.batches.advance(self.share)
        batch = next(self.batches)
        rate = learning_rate(config, progress.step, self.share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._seed(progress.step)
        loss = self._gradient(batch)
        many = self.processes.world_size > 1
        agreed = self._tick(loss / self.processes.world_size, float(many and stop()))
        norm = clip_gradient(self.parameters, config.clip_norm or math.inf)
        skipped = not math.isfinite(norm)
        if skipped:
            self._skip()
        else:
            self.skipped_in_a_row = 0
            self.optimizer.step()
            if self.averaging is not None:
                self.averaging.update_parameters(self.model)
        progress.step += 1
        progress.tokens += batch.y.numel() * self.processes.world_size
        loss, stops = agreed()  # communicated during the optimizer step
        self._call_back("on_step", lambda: Step(
            step=progress.step, tokens=progress.tokens, seconds=progress.seconds,
            share=min(self.share, 1.0), loss=loss, learning_rate=rate, gradient_norm=norm,
            skipped=skipped,
        ))  # fmt: skip
        # A single process needs no agreement, and can still see a signal that came just now.
        return stops > 0 if many else stop()

    def _seed(self, step: int) -> None:
        """Seeds dropout for this step of this process."""
        sequence = np.random.SeedSequence((self.config.seed, step, self.processes.rank))
        seed = int(sequence.generate_state(1)[0])
        # Not torch.manual_seed: it looks for other devices, which takes a hundredth of a step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _gradient(self, batch: BatchLike) -> float:
        """Computes the gradient of a batch; returns the mean loss of this process's rows."""
        self.optimizer.zero_grad(set_to_none=True)
        num_parts, total = self.compute.accumulate, 0.0
        for index, (x, y, reset) in enumerate(_parts(batch, num_parts)):
            with sharing(self.module, now=index == num_parts - 1):
                with self._precision():
                    x, reset = x.to(self.device), None if reset is None else reset.to(self.device)
                    logits, state_after = self.module(x, self.states[index], reset)
                loss = F.cross_entropy(
                    logits.flatten(0, 1).to(self.parameters[0].dtype), y.flatten().to(self.device)
                )
                (loss / num_parts).backward()
            total += loss.item() / num_parts
            self.states[index] = state_after.detach() if self.carry_state else None
        return total

    def _skip(self) -> None:
        """Skips a step, or ends the run, since the loss or its gradient is not finite."""
        step, rate = self.progress.step, self.config.learning_rate
        hint = f"try a lower learning rate than {rate:g} (earlier checkpoints are intact)"
        if self.config.nonfinite == "stop":
            raise UserError(f"the loss or its gradient stopped being finite at step {step}; {hint}")
        self.progress.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == PATIENCE:
            raise UserError(
                f"the loss or its gradient was not finite in each of the {PATIENCE} steps up to "
                f"{step}; {hint}"
            )
        self.states = [None] * len(self.states)  # they may be the cause

    def measure(self) -> None:
        """Evaluates, calls the callbacks, and saves the model if it is the best."""
        progress = self.progress
        with self._precision():
            train, val = (
                evaluate(self.measured, sample, processes=self.processes) for sample in self.samples
            )
        best = val.loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step = val.loss, progress.step
        self._tick()()
        folder = self.folder if best else None
        model = self._whole_model() if folder or self.wants_model else None
        self._call_back("on_evaluated", lambda: Evaluated(
            step=progress.step, tokens=progress.tokens, seconds=progress.seconds,
            train=train, val=val, best=best, model=model,
        ))  # fmt: skip
        if folder and model and self.processes.is_first:
            model.save_pretrained(folder)

    def save(self) -> None:
        """Writes a checkpoint."""
        if self.folder is None:
            return
        parts = [state for state in self.states if state is not None]
        save_checkpoint(
            self.folder, self.progress.step, self.models, self.optimizer,
            states.stack(parts) if parts else None,
            {"progress": asdict(self.progress), "batches": self.batches.state_dict()},
            keep=self.config.keep_checkpoints, processes=self.processes,
        )  # fmt: skip

    def finish(self) -> None:
        """Copies the averaged weights into the model."""
        if self.measured is not self.model:
            self.model.load_state_dict(self.measured.state_dict())

    def _precision(self) -> AbstractContextManager[Any]:
        if self.compute.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _whole_model(self) -> LanguageModel | None:
        """The evaluated model; of a sharded one an unsharded copy, in the first process alone."""
        if not isinstance(self.measured, FSDPModule):
            return self.measured
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.measured, options=options)
        if not self.processes.is_first:
            return None
        whole = LanguageModel(self.model.config)
        whole.load_state_dict(weights)
        return whole.eval()

    def _tick(self, *values: float) -> Callable[[], list[float]]:
        """Starts to update the run's seconds, by the first process's clock, and to sum `values`
        over the processes. The returned function completes both, and returns the sums."""
        now = time.perf_counter()
        elapsed = now - self.clock if self.processes.is_first else 0.0
        self.clock = now
        sums = self.processes.sum_up(elapsed, *values)

        def complete() -> list[float]:
            elapsed, *totals = sums()
            self.progress.seconds += elapsed
            return totals

        return complete

    def _call_back(self, method: str, make: Callable[[], Step | Evaluated]) -> None:
        if self.processes.is_first:
            event = make()
            for callback in self.callbacks:
                getattr(callback, method)(event)


def _prepare(model: LanguageModel, compute: ComputeConfig) -> None:
    """Sets up recomputation and compilation of a model's blocks."""
    model.stack.recompute_blocks = compute.recompute_blocks
    if compute.compile:
        for block in model.stack.blocks:
            block.compile()


def _parts(batch: BatchLike, num_parts: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Splits the rows of a batch into equal parts.

    Raises:
        UserError: if that is impossible.
    """
    if len(batch.x) % num_parts:
        raise UserError(
            f"{len(batch.x)} sequences cannot be split into {num_parts} equal parts: "
            "choose another --batch-size or --accumulate"
        )
    resets = [None] * num_parts if batch.reset is None else batch.reset.chunk(num_parts)
    return zip(batch.x.chunk(num_parts), batch.y.chunk(num_parts), resets, strict=True)


def _average(
    model: LanguageModel, decay: float
) -> tuple[AveragedModel, LanguageModel] | tuple[None, None]:
    """Torch's averaging of a model's weights, and the copy of the model that has the averages."""
    if not decay:
        return None, None
    averaging = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return averaging, cast("LanguageModel", averaging.module)
