"""Plans of training, against sums done by hand and against what xLSTM-7B's authors report."""

import json

import pytest

from openxlstm.config import ComputeConfig, ModelConfig
from openxlstm.errors import UserError
from openxlstm.lm.cost import training_flops_per_token
from openxlstm.lm.memory import activation_bytes
from openxlstm.lm.model import LanguageModel
from openxlstm.lm.plan import TrainingJob, plan_training, rate_of_devices
from openxlstm.lm.presets import get_preset

MODEL = ModelConfig(vocab_size=11, embedding_dim=16, layers="msm", num_heads=2)
JOB = TrainingJob(model=MODEL, tokens=1000, batch_size=8, window=6)


def seven_b() -> tuple[TrainingJob, float]:
    """The run of arXiv:2503.13427, and its tokens a second."""
    preset = get_preset("xlstm-7b")
    reported, data = preset.reported, preset.data
    assert reported is not None
    assert preset.train.steps == 550_000
    job = TrainingJob(
        model=preset.model,
        tokens=preset.train.steps * data.batch_size * data.window,
        batch_size=data.batch_size,
        window=data.window,
        world_size=reported.world_size,
        compute=reported.compute,
    )
    return job, reported.tokens_per_second


def test_by_hand() -> None:
    plan = plan_training(JOB, tokens_per_second=50.0)
    P = sum(p.numel() for p in LanguageModel(MODEL).parameters())
    assert plan.parameters == sum(plan.parts.values()) == P
    assert list(plan.parts) == [
        "token embedding", "2 × mLSTM block", "1 × sLSTM block", "norm", "head",
    ]  # fmt: skip
    assert plan.steps == 21  # 48 tokens each
    assert plan.training_flops == 1000 * training_flops_per_token(MODEL)
    assert plan.tokens_per_parameter == 1000 / P
    assert plan.memory.activations == activation_bytes(MODEL, 8, 6, ComputeConfig())
    assert (plan.weights_file_bytes, plan.checkpoint_bytes) == (4 * P, 12 * P)
    assert plan.seconds == 20
    assert plan.flops_per_second_of_rank == 50 * training_flops_per_token(MODEL)


def test_without_a_rate_there_is_no_time() -> None:
    plan = plan_training(JOB)
    assert plan.tokens_per_second is plan.seconds is plan.flops_per_second_of_rank is None


def test_ranks_and_parts_share_a_batch() -> None:
    compute = ComputeConfig(accumulate=2)
    job = TrainingJob(model=MODEL, tokens=9, batch_size=8, window=6, world_size=2, compute=compute)
    assert job.rows_at_once == 2
    plan = plan_training(job, tokens_per_second=50.0)
    assert plan.memory.activations == activation_bytes(MODEL, 2, 6, compute)
    assert plan.flops_per_second_of_rank == 25 * training_flops_per_token(MODEL)
    with pytest.raises(UserError, match=r"batch of 8 sequences .* 3 ranks in 1 parts .* multiple"):
        TrainingJob(model=MODEL, tokens=9, batch_size=8, window=6, world_size=3)
    with pytest.raises(UserError, match="window must be positive"):
        TrainingJob(model=MODEL, tokens=9, batch_size=8, window=0)


def test_an_average_is_kept_and_saved() -> None:
    with_average = plan_training(
        TrainingJob(model=MODEL, tokens=9, batch_size=1, window=6, average=True)
    )
    assert with_average.memory.average == with_average.memory.weights
    assert with_average.checkpoint_bytes == 4 * with_average.weights_file_bytes


def test_a_rate_from_what_a_device_can_do() -> None:
    job = TrainingJob(model=MODEL, tokens=9, batch_size=2, window=6, world_size=2)
    rate = rate_of_devices(job, 1e12, 0.25)
    assert plan_training(job, rate).flops_per_second_of_rank == pytest.approx(0.25e12)
    for flops, mfu in ((0, 0.4), (1e12, 0), (1e12, 1.5)):
        with pytest.raises(UserError, match="must be"):
            rate_of_devices(job, flops, mfu)


def test_json_has_the_sum() -> None:
    values = json.loads(json.dumps(plan_training(JOB).to_dict()))
    memory = values["memory"]
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")


def test_the_run_of_xlstm_7b() -> None:
    """arXiv:2503.13427: 2.3T tokens in 550K steps of 512 × 8192 (appendix B, which starts with
    smaller batches); 128 GPUs at 9.15 thousand tokens/s (table 2), 3.63 s a step (table 3). An H100
    has 80 GB and does 989 TFLOP/s in bfloat16 (NVIDIA's data sheet)."""
    job, rate = seven_b()
    plan = plan_training(job, rate)
    assert plan.tokens == pytest.approx(2.3e12, rel=0.005)
    assert plan.steps == 550_000
    assert plan.seconds is not None
    assert plan.seconds / plan.steps == pytest.approx(3.63, rel=0.02)
    assert plan.memory.total < 80e9
    assert plan.flops_per_second_of_rank is not None
    assert 0.3 < plan.flops_per_second_of_rank / 989e12 < 0.5
    assert plan.training_flops == pytest.approx(6 * plan.parameters * plan.tokens, rel=0.03)


def test_why_xlstm_7b_was_sharded_and_recomputed() -> None:
    job, _ = seven_b()

    def total(**options: object) -> int:
        compute = ComputeConfig.from_dict({**job.compute.to_dict(), **options})
        return plan_training(
            TrainingJob(
                model=job.model, tokens=1, batch_size=512, window=8192, world_size=128,
                compute=compute,
            )
        ).memory.total  # fmt: skip

    assert total(strategy="ddp") > 80e9
    assert total(recompute_blocks=False) > 80e9
