"""The training loop: batches in, a better model out, and nothing lost on the way.

B batch · W processes · A parts that a process computes its share of a batch in
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
"""Steps in a row that may be skipped: after so many, the weights are what is broken."""


class Batches(Protocol):
    """An endless iterator of this process's rows of batches, that can be put back to where it was.

    Its state is the same in every process, and independent of how many there are."""

    def __next__(self) -> BatchLike: ...
    def advance(self, share: float) -> None:
        """Told what share of the run is done, before each batch."""
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

    Every `config.eval_every` steps, and at both ends, the loss on the two samples is measured; if
    there is a `folder`, it then gets a checkpoint of the whole run, and, when the validation loss
    is the lowest so far, the model. With `config.ema_decay`, what is measured and saved is the
    moving average of the weights, and `model` is that average at the end.

    A run whose length is in steps or tokens, and that was stopped or killed and resumed, ends with
    the weights, bit for bit, of one that was not: dropout is drawn anew for each step, from the
    seed, the number of the step and the process. Among several processes, each is given its own
    rows of the same batches, and the gradient is that of the whole batch.

    Args:
        model: on the device to train on; the same in every process. One that is to be spread by
            "fsdp" may be elsewhere.
        batches: what to train on.
        config: how, and how long.
        callbacks: told of every step and evaluation, in the first process.
        compute: how it is computed: precision, and how a model is spread among processes.
        processes: those of this job.
        train_sample, val_sample: batches to measure the loss on, iterated anew each time; this
            process's rows of them.
        carry_state: whether each batch goes on where the one before stopped (truncated
            backpropagation through time: the state is carried, the gradient is not).
        folder: where to save; None saves nothing.
        resume: the checkpoint to go on from.
        stop: asked once in each step; True, in any process, saves after it and returns.

    Returns:
        How far the run came.

    Raises:
        UserError: if the loss stops being a number, or the checkpoint does not fit.
        OSError: if a checkpoint cannot be written; those before are whole.
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
    """What a run is made of, and the parts of it that `fit` puts in order."""

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
        if processes.mesh is not None:  # what is spread is moved there, shard by shard
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
        """Puts the run back to where it was."""
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
        self.processes.wait()  # for the files that the first one has made
        self.clock = time.perf_counter()

    @property
    def share(self) -> float:
        """Share of the run that is done, by the limit that is nearest."""
        config, progress = self.config, self.progress
        by_steps = progress.step / config.steps if config.steps else 0.0
        by_tokens = progress.tokens / config.tokens if config.tokens else 0.0
        by_clock = progress.seconds / (60 * config.minutes) if config.minutes else 0.0
        return max(by_steps, by_tokens, by_clock)

    def step(self, stop: Callable[[], bool]) -> bool:
        """One step of the optimizer, on one batch; returns whether any process is told to stop."""
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
        loss, stops = agreed()  # which was on its way meanwhile
        self._say("on_step", lambda: Step(
            step=progress.step, tokens=progress.tokens, seconds=progress.seconds,
            share=min(self.share, 1.0), loss=loss, learning_rate=rate, gradient_norm=norm,
            skipped=skipped,
        ))  # fmt: skip
        # One process alone has nobody to agree with, and hears what came up to the last moment.
        return stops > 0 if many else stop()

    def _seed(self, step: int) -> None:
        """Sets what dropout is drawn with in this step of this process."""
        sequence = np.random.SeedSequence((self.config.seed, step, self.processes.rank))
        seed = int(sequence.generate_state(1)[0])
        # Not torch.manual_seed, which looks for other devices each time: a hundredth of a step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _gradient(self, batch: BatchLike) -> float:
        """Leaves the gradient of a batch in the parameters, and returns the loss of the rows that
        this process has of it."""
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
        """Leaves a step out, or ends the run: what its loss or gradient is, is no number."""
        step, rate = self.progress.step, self.config.learning_rate
        hint = f"try a lower learning rate than {rate:g} (what was saved before is untouched)"
        if self.config.nonfinite == "stop":
            raise UserError(
                f"the loss or its gradient stopped being a number at step {step}; {hint}"
            )
        self.progress.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == PATIENCE:
            raise UserError(
                f"the loss or its gradient was no number in each of the {PATIENCE} steps up to "
                f"{step}; {hint}"
            )
        self.states = [None] * len(self.states)  # they may be what is broken

    def measure(self) -> None:
        """Evaluates, tells, and saves the model if it is the best."""
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
        self._say("on_evaluated", lambda: Evaluated(
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
        """Leaves the model that is measured in the one that was given."""
        if self.measured is not self.model:
            self.model.load_state_dict(self.measured.state_dict())

    def _precision(self) -> AbstractContextManager[Any]:
        if self.compute.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _whole_model(self) -> LanguageModel | None:
        """What is measured, whole: where it is in shards a copy, in the first process alone."""
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
        """Starts to bring the run's seconds up to now, by the first process's clock, and to sum up
        `values` over the processes. Calling what it returns completes that."""
        now = time.perf_counter()
        elapsed = now - self.clock if self.processes.is_first else 0.0
        self.clock = now
        sums = self.processes.sum_up(elapsed, *values)

        def complete() -> list[float]:
            elapsed, *totals = sums()
            self.progress.seconds += elapsed
            return totals

        return complete

    def _say(self, what: str, news: Callable[[], Step | Evaluated]) -> None:
        if self.processes.is_first:
            told = news()
            for callback in self.callbacks:
                getattr(callback, what)(told)


def _prepare(model: LanguageModel, compute: ComputeConfig) -> None:
    """Sets how a model's blocks are computed in training."""
    model.stack.recompute_blocks = compute.recompute_blocks
    if compute.compile:
        for block in model.stack.blocks:
            block.compile()


def _parts(batch: BatchLike, num_parts: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The rows of a batch in equal parts.

    Raises:
        UserError: if there are not as many in each.
    """
    if len(batch.x) % num_parts:
        raise UserError(
            f"{len(batch.x)} sequences cannot be computed in {num_parts} equal parts: "
            "give another --batch-size or --accumulate"
        )
    resets = [None] * num_parts if batch.reset is None else batch.reset.chunk(num_parts)
    return zip(batch.x.chunk(num_parts), batch.y.chunk(num_parts), resets, strict=True)


def _average(
    model: LanguageModel, decay: float
) -> tuple[AveragedModel, LanguageModel] | tuple[None, None]:
    """What averages a model's weights, and the copy of the model that has the averages."""
    if not decay:
        return None, None
    averaging = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return averaging, cast("LanguageModel", averaging.module)
