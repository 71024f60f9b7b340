"""The training loop: it learns, it can stop anywhere, and it never loses what it had."""

import math
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from train_cases import TOKENS, Recorder, make_config, make_model

from openxlstm import states
from openxlstm.config import ComputeConfig, TrainConfig
from openxlstm.data.batches import Batch, RandomWindows, Streams
from openxlstm.data.tokens import Tokens
from openxlstm.errors import UserError
from openxlstm.lm.model import LanguageModel
from openxlstm.train import loop
from openxlstm.train.callback import Callback, Evaluated, Progress, Step
from openxlstm.train.checkpoint import load_weights, newest, save_checkpoint
from openxlstm.train.evaluate import Evaluation, evaluate
from openxlstm.train.loop import fit
from openxlstm.train.metrics import MetricsFile
from openxlstm.train.records import read_metrics
from openxlstm.train.schedule import learning_rate

Weights = dict[str, Tensor]

SAMPLINGS = ["windows", "streams"]
KINDS = ["windows", "streams", "growing", "averaged"]
"""Ways to train that each carry something of their own from step to step."""


def make_batches(kind: str = "windows") -> RandomWindows | Streams:
    # 60 tokens in 3 rows of 7: a stream comes to the end of the text in its third batch.
    first_window = 2 if kind == "growing" else None
    if kind in ("windows", "averaged"):
        return RandomWindows(Tokens(TOKENS), 3, 7)
    return Streams(Tokens(TOKENS[:60]), 3, 7, first_window=first_window)


def make_sample(count: int = 2) -> list[Batch]:
    return list(islice(RandomWindows(Tokens(TOKENS), 4, 8, seed=99), count))


def weights(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(a: Weights, b: Weights) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def run(
    model: LanguageModel,
    config: TrainConfig,
    *callbacks: Callback,
    sampling: str = "windows",
    folder: Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Progress:
    sample = make_sample()
    return fit(
        model, make_batches(sampling), config, callbacks, train_sample=sample,
        val_sample=sample, carry_state=sampling in ("streams", "growing"), folder=folder,
        resume=newest(folder) if resume and folder else None, **options,
    )  # fmt: skip


def last_model(folder: Path, model: LanguageModel) -> Weights:
    """The weights in a run's newest checkpoint."""
    path = newest(folder)
    assert path is not None
    load_weights(path, model)
    return weights(model)


def tensors(folder: Path) -> Weights:
    """What a run's newest checkpoint holds."""
    path = newest(folder)
    assert path is not None
    (file,) = path.glob("*.safetensors")
    return load_file(file)


# ---- learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_loss_falls(sampling: str, recorder: Any) -> None:
    """A text that repeats itself is known by heart after a few steps."""
    config = make_config(steps=60, eval_every=30, learning_rate=0.02)
    progress = run(make_model(), config, recorder, sampling=sampling)
    first, middle, last = recorder.evaluations
    assert first.val.loss == pytest.approx(math.log(6), rel=0.2)
    assert last.val.loss < 0.7
    assert progress.best_loss == min(middle.val.loss, last.val.loss)
    assert progress.step == 60
    assert progress.tokens == 60 * 21


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_it_is_adamw_and_the_schedule(sampling: str, clip_norm: float, recorder: Any) -> None:
    """Against the loop that a reader would write, without any of its conveniences."""
    config = make_config(clip_norm=clip_norm, weight_decay=0.5, schedule="cosine", warmup=0.5)
    model = make_model().double()  # Adam makes much of a rounding error in a gradient near 0
    run(model, config, recorder, sampling=sampling)

    naive = make_model().double()
    groups = naive.parameter_groups(0.5)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), foreach=False, fused=False)
    state, losses, norms = None, [], []
    for step, batch in enumerate(islice(make_batches(sampling), 8)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, step / 8)
        logits, state = naive(batch.x, state, batch.reset)
        loss = -logits.log_softmax(-1).gather(-1, batch.y[..., None]).mean()
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in naive.parameters() if p.grad is not None]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        if clip_norm and norm > clip_norm:
            for gradient in gradients:
                gradient.mul_(clip_norm / norm)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)
        state = state.detach() if sampling == "streams" else None

    assert [step.loss for step in recorder.steps] == pytest.approx(losses, rel=1e-6)
    assert [step.gradient_norm for step in recorder.steps] == pytest.approx(norms, rel=1e-4)
    for (name, ours), theirs in zip(model.named_parameters(), naive.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5), name


def test_clipping() -> None:
    """The gradient that the last step used is still there; 0 leaves it as long as it was."""

    def last_norm(clip_norm: float) -> tuple[float, float]:
        model, told = make_model(), []
        callback = Callback()
        callback.on_step = lambda step: told.append(step.gradient_norm)
        run(model, make_config(steps=1, clip_norm=clip_norm), callback)
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(gradients).norm().item(), told[0]

    used, told = last_norm(0)
    assert used == pytest.approx(told, rel=1e-4)
    assert told > 0.1
    used, same = last_norm(0.01)
    assert same == told, "what is told is the norm before clipping"
    assert used == pytest.approx(0.01, rel=1e-3)


def test_the_text_of_a_stream_is_not_forgotten_between_batches(recorder: Any) -> None:
    """The first loss of the second batch is that of a model that has read the first."""
    model = make_model()
    config = make_config(steps=2, learning_rate=1e-12)  # stays what it was
    run(model, config, recorder, sampling="streams")
    batches = list(islice(make_batches("streams"), 2))
    carried = (
        evaluate(model, batches, carry_state=True).loss * 2 - evaluate(model, batches[:1]).loss
    )
    assert recorder.steps[1].loss == pytest.approx(carried, rel=1e-5)
    assert recorder.steps[1].loss != pytest.approx(evaluate(model, batches[1:]).loss, rel=1e-6)


def test_averages_are_what_is_measured_and_saved(tmp_path: Path, recorder: Any) -> None:
    config = make_config(ema_decay=0.7, eval_every=1)
    model, decay = make_model(), 0.7
    run(model, config, recorder, folder=tmp_path)

    plain, average = make_model(), {}
    callback = Callback()

    def follow(step: Step) -> None:
        for name, weight in weights(plain).items():
            last = average.get(name, weight)  # the first average is the weights after one step
            average[name] = decay * last + (1 - decay) * weight

    callback.on_step = follow
    run(plain, make_config(eval_every=1), callback)
    assert weights(model).keys() == average.keys()
    for name, weight in weights(model).items():
        assert torch.allclose(weight, average[name], atol=1e-6), name
    assert recorder.evaluations[-1].val.loss == evaluate(model, make_sample()).loss
    assert_equal(load_file(tmp_path / "model.safetensors"), weights(model))


# ---- telling ----------------------------------------------------------------------------------


def test_callbacks_hear_everything_in_order(recorder: Any) -> None:
    config = make_config()
    run(make_model(), config, recorder)
    assert recorder.calls == [
        "start", "evaluated 0", "step 1", "step 2", "step 3", "evaluated 3", "step 4", "step 5",
        "step 6", "evaluated 6", "step 7", "step 8", "evaluated 8",
    ]  # fmt: skip
    assert [s.tokens for s in recorder.steps] == [21 * n for n in range(1, 9)]
    assert [s.share for s in recorder.steps] == [n / 8 for n in range(1, 9)]
    rates = [learning_rate(config, n, n / 8) for n in range(8)]
    assert [s.learning_rate for s in recorder.steps] == rates
    seconds = [s.seconds for s in recorder.steps]
    assert seconds == sorted(seconds)
    assert recorder.evaluations[-1].seconds >= seconds[-1]
    assert [e.tokens for e in recorder.evaluations] == [0, 63, 126, 168]


def test_evaluations_at_the_end_are_not_doubled(recorder: Any) -> None:
    run(make_model(), make_config(steps=6), recorder)
    assert [e.step for e in recorder.evaluations] == [0, 3, 6]


def test_dropout_is_on_for_steps_and_off_for_evaluations() -> None:
    model = make_model(dropout=0.1).eval()
    modes = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    run(model, make_config(steps=3))
    assert modes == [False] * 4 + [True] * 3 + [False] * 4  # two samples of two batches


def test_every_seed_step_and_process_draws_other_numbers() -> None:
    drawn = set()
    for seed, step, rank in product((0, 1), repeat=3):
        of: Any = SimpleNamespace(seed=seed, rank=rank)
        run: Any = SimpleNamespace(config=of, processes=of, device=torch.device("cpu"))
        loop._Run._seed(run, step)
        drawn.add(torch.rand(1).item())
    assert len(drawn) == 8


def test_without_a_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(make_model(), make_config())
    assert not list(tmp_path.iterdir())


# ---- stopping and going on --------------------------------------------------------------------


def stop_at(step: int) -> Callable[[], bool]:
    """A `stop` that is True when it is asked after that step."""
    asked = iter(range(1, 10**6))
    return lambda: next(asked) >= step


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """What a run of 8 steps told, and its folder, for each way to sample."""
    results = {}
    for kind in KINDS:
        folder, recorder = tmp_path_factory.mktemp(kind), Recorder()
        model = make_model(dropout=0.2, embedding_dropout=0.2, num_positions=5)
        config = make_config(ema_decay=0.8 if kind == "averaged" else 0.0)
        torch.manual_seed(1)
        with MetricsFile(folder, every=1) as metrics:
            run(model, config, recorder, metrics, sampling=kind, folder=folder)
        results[kind] = recorder, folder
    return results


def timeless(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, but for the time."""
    return [{**record, "seconds": None} for record in read_metrics(folder)]


@pytest.mark.parametrize("last", [1, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(
    kind: str, last: int, uninterrupted: dict[str, tuple[Any, Path]], tmp_path: Path
) -> None:
    """Bit for bit: weights, optimizer, random numbers, losses. On an evaluation step or between."""
    options = {"dropout": 0.2, "embedding_dropout": 0.2, "num_positions": 5}
    recorder = Recorder()
    config = make_config(ema_decay=0.8 if kind == "averaged" else 0.0)
    model = make_model(**options)
    torch.manual_seed(1)
    with MetricsFile(tmp_path, every=1) as metrics:
        stopped = run(
            model, config, recorder, metrics, sampling=kind, folder=tmp_path,
            stop=stop_at(last),
        )  # fmt: skip
    assert stopped.step == last

    other = make_model(seed=5, **options)
    with MetricsFile(tmp_path, every=1) as metrics:
        resumed = run(
            other, config, recorder, metrics, sampling=kind, folder=tmp_path,
            resume=True,
        )  # fmt: skip
    truth, folder = uninterrupted[kind]
    assert resumed.step == 8
    assert recorder.starts[1].step == last
    assert sorted(recorder.facts()) == sorted(truth.facts())
    assert timeless(tmp_path) == timeless(folder)
    assert_equal(tensors(tmp_path), tensors(folder))
    assert (tmp_path / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()


def test_time_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = run(make_model(), make_config(), folder=tmp_path, stop=stop_at(4))
    second = run(make_model(), make_config(), folder=tmp_path, resume=True)
    assert second.seconds > first.seconds > 0


def test_a_stop_that_comes_between_two_questions_is_saved(tmp_path: Path) -> None:
    """A signal may come at any time; a run that ends early has always saved its last step."""
    for when in range(1, 8):
        model, config = make_model(), make_config(eval_every=100)
        progress = run(model, config, folder=tmp_path, stop=stop_at(when))
        assert_equal(last_model(tmp_path, make_model(seed=3)), weights(model))
        assert progress.step == when


def test_a_finished_run_can_be_made_longer(tmp_path: Path, recorder: Any) -> None:
    run(make_model(), make_config(steps=4), folder=tmp_path)
    again = run(make_model(), make_config(steps=4), recorder, folder=tmp_path, resume=True)
    assert (again.step, recorder.calls) == (4, ["start"]), "there is nothing left to do"
    longer = run(make_model(), make_config(steps=6), folder=tmp_path, resume=True)
    assert longer.step == 6


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(make_model(), make_config(), folder=tmp_path)
    before = tensors(tmp_path)
    with pytest.raises(UserError, match=r"lacks the tensor|does not have|the model needs"):
        run(make_model(layers="s"), make_config(), folder=tmp_path, resume=True)
    assert_equal(tensors(tmp_path), before)


# ---- time -------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes each time anybody looks."""
    ticks: Iterator[int] = iter(range(10**6))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


def test_a_run_by_the_clock_ends(clock: None, recorder: Any) -> None:
    config = make_config(steps=None, minutes=0.5, eval_every=1000)
    progress = run(make_model(), config, recorder)
    # The evaluation at the start takes a second, so does every step, and so does the last one.
    assert progress.step == 29
    assert progress.seconds == 31
    assert [e.step for e in recorder.evaluations] == [0, 29]
    shares = [step.share for step in recorder.steps]
    assert shares == pytest.approx([(n + 1) / 30 for n in range(1, 30)])
    rates = [learning_rate(config, n, n / 30) for n in range(1, 30)]
    assert [step.learning_rate for step in recorder.steps] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("steps", "tokens_", "minutes", "done"),
    [(5, 10**6, 0.5, 5), (500, 10**6, 0.5, 29), (500, 21 * 7, 0.5, 7), (None, 21 * 7 + 1, None, 8)],
)
def test_the_limit_that_comes_first_ends_the_run(
    clock: None, steps: int | None, tokens_: int | None, minutes: float | None, done: int
) -> None:
    config = make_config(steps=steps, tokens=tokens_, minutes=minutes, eval_every=1000)
    assert run(make_model(), config).step == done


def test_a_real_clock_ends_a_run_too() -> None:
    progress = run(make_model(), make_config(steps=None, minutes=0.002, eval_every=10**6))
    assert progress.step >= 1
    assert progress.seconds >= 0.12


# ---- what must not be lost --------------------------------------------------------------------


class Poison(Callback):
    """Makes a weight NaN after a step, as a run that diverges does."""

    def __init__(self, model: LanguageModel, after: int) -> None:
        self.model, self.after = model, after

    def on_step(self, step: Step) -> None:
        if step.step == self.after:
            with torch.no_grad():
                self.model.head.weight[0, 0] = math.nan


def test_divergence_is_said_and_spoils_nothing(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(UserError, match="stopped being finite at step 4") as caught:
        run(model, make_config(), Poison(model, after=4), folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert "lower learning rate than 0.01" in str(caught.value)
    for saved in (
        weights(LanguageModel.from_pretrained(tmp_path)), last_model(tmp_path, make_model())
    ):  # fmt: skip
        assert all(tensor.isfinite().all() for tensor in saved.values())
    resumed = run(make_model(), make_config(), folder=tmp_path, resume=True)
    assert resumed.step == 8


def test_a_rate_that_is_far_too_high_diverges() -> None:
    config = make_config(learning_rate=1e30, steps=100)
    with pytest.raises(UserError, match="stopped being finite"):
        run(make_model(), config)


def break_in(model: LanguageModel, *calls: int) -> None:
    """Makes what the model returns in training NaN, in some of the calls of it, counted from 0."""
    counter = iter(range(10**6))

    def hook(module: nn.Module, _: object, output: Any) -> Any:
        if not module.training or next(counter) not in calls:
            return output
        logits, state = output
        return logits * math.nan, states.map_state(lambda part: part * math.nan, state)

    model.register_forward_hook(hook)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_step_that_is_no_number_can_be_left_out(
    sampling: str, tmp_path: Path, recorder: Any
) -> None:
    """It costs that step, and a state that went with it; all else goes on, also over a break."""
    config = make_config(nonfinite="skip", eval_every=100)
    model = make_model()
    before: list[Weights] = []
    recorder.on_step = lambda step: (recorder.steps.append(step), before.append(weights(model)))
    break_in(model, 2, 3)
    progress = run(model, config, recorder, sampling=sampling, folder=tmp_path, stop=stop_at(6))
    assert [step.skipped for step in recorder.steps] == [False] * 2 + [True] * 2 + [False] * 2
    assert (progress.step, progress.skipped, progress.tokens) == (6, 2, 6 * 21)
    assert_equal(before[1], before[3])
    assert not torch.equal(before[3]["head.weight"], before[4]["head.weight"])
    assert [math.isfinite(step.loss) for step in recorder.steps] == [True] * 2 + [False] * 2 + [
        True
    ] * 2
    assert all(part.isfinite().all() for part in tensors(tmp_path).values())
    resumed = run(make_model(), config, sampling=sampling, folder=tmp_path, resume=True)
    assert (resumed.step, resumed.skipped) == (8, 2)


def test_a_run_that_skips_everything_ends() -> None:
    model = make_model()
    config = make_config(nonfinite="skip", steps=1000, eval_every=10**6)
    with pytest.raises(UserError, match="in each of the 100 steps up to 104"):
        run(model, config, Poison(model, after=5))


# ---- how it is computed -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_recomputed_blocks_change_nothing(kind: str) -> None:
    told = []
    for how in (ComputeConfig(), ComputeConfig(accumulate=3, recompute_blocks=True)):
        recorder = Recorder()
        model = make_model().double()
        run(model, make_config(), recorder, sampling=kind, compute=how)
        told.append((recorder.facts(), weights(model)))
    (facts, before), (others, after) = told
    for a, b in zip(facts, others, strict=True):
        assert a == pytest.approx(b, rel=1e-9)
    for name, weight in before.items():
        assert torch.allclose(weight, after[name], atol=1e-9), name


def test_recomputed_blocks_drop_the_same() -> None:
    """The second time that a block is computed, its dropout is that of the first."""
    models = [make_model(dropout=0.3), make_model(dropout=0.3)]
    for model, recompute in zip(models, (False, True), strict=True):
        compute = ComputeConfig(recompute_blocks=recompute)
        run(model, make_config(), compute=compute)
    for name, weight in weights(models[0]).items():
        assert torch.allclose(weight, models[1].state_dict()[name], atol=1e-6), name


def test_bfloat16_learns_as_well() -> None:
    config = make_config(steps=60, eval_every=60, learning_rate=0.02)
    model = make_model()
    progress = run(model, config, compute=ComputeConfig(precision="bfloat16"))
    assert progress.best_loss < 0.7
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of torch.compile itself
def test_compiled_blocks_learn_the_same() -> None:
    told = []
    for how in (ComputeConfig(), ComputeConfig(compile=True)):
        recorder = Recorder()
        run(make_model(), make_config(), recorder, compute=how)
        told.append([evaluated.val.loss for evaluated in recorder.evaluations])
    assert told[0] == pytest.approx(told[1], rel=1e-4)


def test_parts_that_are_not_equal() -> None:
    with pytest.raises(UserError, match="3 sequences cannot be split into 2 equal parts"):
        run(make_model(), make_config(), compute=ComputeConfig(accumulate=2))


class Snapshots(Callback):
    """The weights at each evaluation."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.weights: dict[int, Weights] = {}
        self.best: list[int] = []

    def on_evaluated(self, evaluated: Evaluated) -> None:
        self.weights[evaluated.step] = weights(self.model)
        if evaluated.best:
            self.best.append(evaluated.step)


def test_the_model_saved_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes after the lowest validation loss; the training loss says nothing."""
    losses = iter([9, 5.0, 8, 3.0, 7, 3.0, 6, math.nan, 5, 4.0])  # train and val, five times
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Evaluation(loss=next(losses), tokens=1))
    model = make_model()
    snapshots = Snapshots(model)
    progress = run(model, make_config(steps=4, eval_every=1), snapshots, folder=tmp_path)
    assert snapshots.best == [0, 1]
    assert (progress.best_loss, progress.best_step) == (3.0, 1)
    assert_equal(weights(LanguageModel.from_pretrained(tmp_path)), snapshots.weights[1])
    assert_equal(last_model(tmp_path, make_model()), snapshots.weights[4])


def test_the_best_loss_is_remembered_over_a_break(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([9, 2.0, 9, 3.0, 9, 2.5])
    monkeypatch.setattr(loop, "evaluate", lambda *_, **__: Evaluation(loss=next(losses), tokens=1))
    config = make_config(steps=2, eval_every=1)
    run(make_model(), config, folder=tmp_path, stop=stop_at(1))
    before = (tmp_path / "model.safetensors").read_bytes()
    progress = run(make_model(), config, folder=tmp_path, resume=True)
    assert (progress.best_loss, progress.best_step) == (2.0, 0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_kill_during_a_save_leaves_a_run_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, tuple[Any, Path]]
) -> None:
    """The model is written, the checkpoint is not: the run goes on from the one before."""
    options = {"dropout": 0.2, "embedding_dropout": 0.2, "num_positions": 5}
    saves = iter(range(100))

    def killed_at_the_third(*args: Any, **options: Any) -> None:
        if next(saves) == 2:
            raise KeyboardInterrupt
        save_checkpoint(*args, **options)

    monkeypatch.setattr(loop, "save_checkpoint", killed_at_the_third)
    model = make_model(**options)
    torch.manual_seed(1)
    with MetricsFile(tmp_path, every=1) as metrics, pytest.raises(KeyboardInterrupt):
        run(model, make_config(), metrics, folder=tmp_path)
    with MetricsFile(tmp_path, every=1) as metrics:
        run(make_model(**options), make_config(), metrics, folder=tmp_path, resume=True)
    _, folder = uninterrupted["windows"]
    assert_equal(tensors(tmp_path), tensors(folder))
    assert timeless(tmp_path) == timeless(folder)
