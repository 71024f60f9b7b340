"""`Trainer` and `pipeline` of transformers, on a text that takes a moment."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
    pipeline,
)

import openxlstm
from openxlstm.data.tokenizer import CharTokenizer

pytest.importorskip("accelerate")

TEXT = "the cat sat on the mat, and then the hen sat on the fox. "
LINES = [TEXT[start : start + 20 + start % 7] for start in range(36)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as `openxlstm train` makes them."""
    tokenizer = CharTokenizer.from_texts([TEXT])
    tokenizer.save(tmp_path / "run")
    config = openxlstm.ModelConfig(
        vocab_size=tokenizer.vocab_size, embedding_dim=32, layers="ms", num_heads=2
    )
    openxlstm.LanguageModel(config).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def trained(run: Path, out: Path, collator: Any, **options: Any) -> tuple[Trainer, Any]:
    model = AutoModelForCausalLM.from_pretrained(run)
    tokenizer = AutoTokenizer.from_pretrained(run)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    data: Any = [{"input_ids": tokenizer.encode(line)} for line in LINES]
    arguments = TrainingArguments(
        output_dir=str(out), max_steps=12, per_device_train_batch_size=6, learning_rate=1e-2,
        report_to=[], use_cpu=True, disable_tqdm=True, logging_steps=3, save_steps=6, seed=0,
        **options,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data[:8],
        data_collator=collator(tokenizer),
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    return trainer, tokenizer


def lines(tokenizer: Any) -> Any:
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)


def packed(tokenizer: Any) -> Any:
    return DataCollatorWithFlattening()


@pytest.mark.parametrize("collator", [lines, packed])
def test_the_loss_falls(collator: Any, run: Path, tmp_path: Path) -> None:
    trainer, _ = trained(run, tmp_path / "out", collator)
    trainer.save_model(str(tmp_path / "model"))
    ids = torch.tensor([[1, 2, 3, 4]])
    model: Any = trainer.model
    expected = model.eval()(ids).logits
    here = openxlstm.LanguageModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(here(ids)[0], expected)


def test_checkpoints(run: Path, tmp_path: Path) -> None:
    """Blocks computed again, gradients added up, and going on from a checkpoint."""
    options = {"activation_checkpointing": True, "gradient_accumulation_steps": 2}
    trainer, _ = trained(run, tmp_path / "out", lines, **options)
    model: Any = trainer.model
    last = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, last[name])


def test_pipeline(run: Path) -> None:
    say: Any = pipeline("text-generation", model=str(run), device="cpu")
    (answer,) = say("the cat", max_new_tokens=8, do_sample=False)
    tokenizer, model = openxlstm.load_tokenizer(run), openxlstm.LanguageModel.from_pretrained(run)
    pieces = openxlstm.generate(model, tokenizer, "the cat", max_tokens=8, temperature=0.0)
    assert answer["generated_text"] == "the cat" + "".join(pieces)
    say.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    many = say(["the cat", "a"], max_new_tokens=8, do_sample=False, batch_size=2)
    assert many[0] == [answer]
    assert len(many[1][0]["generated_text"]) == 9
