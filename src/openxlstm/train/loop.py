"""The training loop: batches in, a better model out, and nothing lost on the way."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from openxlstm.config import TrainConfig
from openxlstm.errors import UserError
from openxlstm.lm.model import LanguageModel
from openxlstm.train.checkpoint import load_checkpoint, save_checkpoint
from openxlstm.train.evaluate import Batch, Evaluation, evaluate
from openxlstm.train.schedule import learning_rate

LAST = Path("checkpoints") / "last.safetensors"


class Batches(Protocol):
    """An endless iterator of batches that can be put back to where it was."""

    def __next__(self) -> Batch: ...
    def advance(self, share: float) -> None:
        """Told what share of the run is done, before each batch."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Time on the clock, evaluations included, pauses between resumed parts not."""
    best_loss: float = math.inf
    """Lowest validation loss so far, in nats a token."""
    best_step: int = 0
    """Step at which that was."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a callback is told after an optimizer step."""

    step: int
    tokens: int
    seconds: float
    share: float
    """Share of the run that is done."""
    loss: float
    """Loss of this step's batch, in nats a token."""
    learning_rate: float
    gradient_norm: float
    """Norm of the whole gradient before clipping."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What a callback is told after an evaluation."""

    step: int
    tokens: int
    seconds: float
    train: Evaluation
    val: Evaluation
    best: bool
    """Whether this is the lowest validation loss so far."""


class Callback:
    """Hears of a run; a subclass says what it wants to hear."""

    def on_start(self, progress: Progress) -> None: ...
    def on_step(self, step: Step) -> None: ...
    def on_evaluated(self, evaluated: Evaluated) -> None: ...


def fit(
    model: LanguageModel,
    batches: Batches,
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    *,
    train_sample: Iterable[Batch] = (),
    val_sample: Iterable[Batch] = (),
    carry_state: bool = False,
    folder: Path | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Trains `model` in place with AdamW until the run's steps, tokens or minutes are over.

    Every `config.eval_every` steps, and at both ends, the loss on the two samples is measured; if
    there is a `folder`, it then gets a checkpoint of the whole run (`checkpoints/last.safetensors`)
    and, when the validation loss is the lowest so far, the model. With `config.ema_decay`, what is
    measured and saved is the moving average of the weights, and `model` is that average at the end.

    Args:
        model: on the device to train on.
        batches: what to train on.
        config: how, and how long.
        callbacks: told of every step and evaluation.
        train_sample, val_sample: batches to measure the loss on, iterated anew each time.
        carry_state: whether each batch goes on where the one before stopped (truncated
            backpropagation through time: the state is carried, the gradient is not).
        folder: where to save; None saves nothing.
        resume: whether to go on from the folder's checkpoint.
        stop: asked after each step; True saves and returns.

    Returns:
        How far the run came.

    Raises:
        UserError: if the loss stops being a number, or the checkpoint does not fit.
    """
    groups = model.parameter_groups(config.weight_decay)
    optimizer = torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )
    averaging, average = _average(model, config.ema_decay) if config.ema_decay else (None, None)
    measured = model if average is None else average
    progress, state = Progress(), None
    device = next(model.parameters()).device

    def save() -> None:
        if folder is not None:
            values = {"progress": asdict(progress), "batches": batches.state_dict()}
            save_checkpoint(folder / LAST, model, optimizer, state, values, average)

    def tick() -> None:
        """Brings the run's seconds up to now."""
        nonlocal clock
        now = time.perf_counter()
        progress.seconds, clock = progress.seconds + now - clock, now

    def measure() -> None:
        """Evaluates, tells, saves the model if it is the best, and then the checkpoint."""
        train, val = evaluate(measured, train_sample), evaluate(measured, val_sample)
        best = val.loss < progress.best_loss
        if best:
            progress.best_loss, progress.best_step = val.loss, progress.step
        tick()
        evaluated = Evaluated(
            step=progress.step, tokens=progress.tokens, seconds=progress.seconds,
            train=train, val=val, best=best,
        )  # fmt: skip
        for callback in callbacks:
            callback.on_evaluated(evaluated)
        if best and folder is not None:
            measured.save_pretrained(folder)
        save()

    if resume:
        assert folder is not None, "a run is resumed from its folder"
        state, values = load_checkpoint(folder / LAST, model, optimizer, average)
        progress = Progress(**values["progress"])
        if averaging is not None:
            averaging.n_averaged.fill_(progress.step)
        batches.load_state_dict(values["batches"])

    for callback in callbacks:
        callback.on_start(progress)
    model.train()
    clock = time.perf_counter()
    if not resume:
        measure()
    while (share := _share(config, progress)) < 1:
        batches.advance(share)
        batch = next(batches)
        x, y = batch.x.to(device), batch.y.to(device)
        reset = None if batch.reset is None else batch.reset.to(device)
        rate = learning_rate(config, progress.step, share)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits, state_after = model(x, state, reset)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf).item()
        if not math.isfinite(norm) or not math.isfinite(loss.item()):
            raise UserError(
                f"the loss or its gradient stopped being a number at step {progress.step}; "
                f"try a lower learning rate than {config.learning_rate:g} "
                "(what was saved before is untouched)"
            )
        optimizer.step()
        if averaging is not None:
            averaging.update_parameters(model)
        state = state_after.detach() if carry_state else None

        tick()
        progress.step += 1
        progress.tokens += y.numel()
        step = Step(
            step=progress.step, tokens=progress.tokens, seconds=progress.seconds,
            share=min(_share(config, progress), 1.0), loss=loss.item(), learning_rate=rate,
            gradient_norm=norm,
        )  # fmt: skip
        for callback in callbacks:
            callback.on_step(step)
        stopping = stop()  # asked once: it may change its mind while the rest is written
        if progress.step % config.eval_every == 0 or _share(config, progress) >= 1:
            measure()
        elif stopping:
            save()
        if stopping:
            break
    if average is not None:
        model.load_state_dict(average.state_dict())
    return progress


def _average(model: LanguageModel, decay: float) -> tuple[AveragedModel, LanguageModel]:
    """What averages a model's weights, and the copy of the model that has the averages."""
    averaging = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return averaging, cast("LanguageModel", averaging.module)


def _share(config: TrainConfig, progress: Progress) -> float:
    """Share of the run that is done, by the limit that is nearest."""
    by_steps = progress.step / config.steps if config.steps else 0.0
    by_tokens = progress.tokens / config.tokens if config.tokens else 0.0
    by_clock = progress.seconds / (60 * config.minutes) if config.minutes else 0.0
    return max(by_steps, by_tokens, by_clock)
