"""The configurations of xlstm_large and of Hugging Face's xLSTM."""

from typing import Any

import pytest
from interop_cases import LARGE, random_model, weights_of, widths

from openxlstm.config import LargeBlockConfig, ModelConfig
from openxlstm.errors import UserError
from openxlstm.interop.keymap import large_rows
from openxlstm.interop.translate import to_theirs
from openxlstm.interop.xlstm_large import KERNELS, read_large_config, write_hugging_face, write_nxai

NXAI: dict[str, Any] = {
    "embedding_dim": 128, "num_heads": 2, "num_blocks": 2, "vocab_size": 11,
    "norm_reduction_force_float32": True, "chunkwise_kernel": "chunkwise--triton_limit_chunk",
    "mode": "train", "weight_mode": "single",
}  # fmt: skip
SEVEN_B: dict[str, Any] = {
    "add_embedding_dropout": False, "add_forward_backend_padding": False, "add_out_norm": True,
    "add_post_blocks_norm": True, "add_post_norm": False, "add_qk_norm": False,
    "architectures": ["xLSTMForCausalLM"], "autocast_kernel_dtype": "bfloat16",
    "bos_token_id": 0, "cell_norm_eps": 1e-06, "chunk_size": 64,
    "chunkwise_kernel": "chunkwise--triton_xl_chunk", "embedding_dim": 4096, "eos_token_id": 2,
    "eps": 1e-06, "ffn_proj_factor": 2.667, "ffn_round_up_to_multiple_of": 64,
    "force_bos_token_insert": True, "gate_soft_cap": 15.0, "head_dim": 512,
    "igate_bias_init_range": -10.0, "inference_state_dtype": "float32",
    "mlstm_round_up_to_multiple_of": 64, "mode": "inference", "model_type": "xlstm",
    "norm_eps": 1e-06, "norm_reduction_force_float32": True, "num_blocks": 32, "num_heads": 8,
    "output_logit_soft_cap": 30.0, "pad_token_id": 1, "qk_dim_factor": 0.5,
    "return_last_states": True, "sequence_kernel": "native_sequence__triton",
    "step_kernel": "triton", "tie_word_embeddings": False, "torch_dtype": "float32",
    "transformers_version": "4.48.0.dev0", "use_bias": False, "use_cache": True,
    "v_dim_factor": 1.0, "vocab_size": 50304, "weight_mode": "single",
}  # fmt: skip
"""The options in the file of xLSTM-7B."""


def config_of(values: dict[str, Any], *, hugging_face: bool = False) -> ModelConfig:
    return read_large_config(values, {}, "config", hugging_face=hugging_face).language_model


def complaint(values: dict[str, Any], *, hugging_face: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        config_of(values, hugging_face=hugging_face)
    return str(caught.value)


def test_the_file_of_the_7b() -> None:
    config = config_of(SEVEN_B, hugging_face=True)
    assert widths(config) == (2048, 4096, 10944)
    assert (config.embedding_dim, len(config.layers), config.num_heads) == (4096, 32, 8)
    assert config.block == LargeBlockConfig(eps=1e-6, ff_factor=2.667)
    assert not config.tie_weights


def test_defaults_of_nxai() -> None:
    assert config_of(NXAI) == ModelConfig.from_options(
        vocab_size=11, embedding_dim=128, num_heads=2, layers="mm", block="large", eps=1e-6
    )


@pytest.mark.parametrize(("D", "nxai", "hugging_face"), [(768, 2048, 2048), (3072, 8192, 8256)])
def test_feed_forwards_have_two_widths(D: int, nxai: int, hugging_face: int) -> None:
    """Where the options do not say one; where they do and are wrong, the tensors are right."""
    values = {"embedding_dim": D, "num_heads": 4, "num_blocks": 1, "vocab_size": 2}
    assert widths(config_of(values))[2] == nxai
    assert widths(config_of(values, hugging_face=True))[2] == hugging_face


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("qk", "v", "ff"), [(0.5, 1.0, 2.6667), (0.3, 0.75, 1.01), (2.0, 0.4, 9)])
def test_widths_are_the_tensors_own(qk: float, v: float, ff: float, fused: bool) -> None:
    config = ModelConfig.from_options(
        vocab_size=3, embedding_dim=40, layers="m", num_heads=2, block="large",
        qk_dim_factor=qk, v_dim_factor=v, ff_factor=ff, ff_multiple=2,
    )  # fmt: skip
    rows = large_rows(1, hugging_face=True, fused=fused)
    theirs = dict(to_theirs(rows, weights_of(random_model(config))))
    values = {"hidden_size": 40, "num_heads": 2, "num_hidden_layers": 1, "vocab_size": 3}
    found = read_large_config(values, theirs, "config", hugging_face=True).config
    assert widths(found) == widths(config)


@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"use_bias": True}, {"bias": True}),
        ({"add_out_norm": False}, {"final_norm": False}),
        ({"norm_eps": "1e-5"}, {"norm_eps": 1e-5}),
        ({"eps": 0.0}, {"eps": 0.0}),
        ({"gate_soft_cap": None}, {"gate_soft_cap": 0.0}),
        ({"output_logit_soft_cap": 7}, {"logit_soft_cap": 7.0}),
        ({"qk_dim_factor": 1}, {"qk_dim_factor": 1.0}),
        (dict.fromkeys(KERNELS, "anything"), {}),
    ],
)
def test_an_option_that_is_honoured(options: dict[str, Any], ours: dict[str, Any]) -> None:
    found = config_of({**NXAI, **options})
    assert found == config_of(NXAI).replace(**ours)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_heads": None}, "lacks the option num_heads"),
        ({"num_heads": 2.0}, "num_heads=2.0 must be a whole number"),
        ({"num_heads": 3}, "not a multiple of num_heads=3"),
        ({"weight_mode": "folded"}, "weight_mode='folded' has no counterpart"),
        ({"gate_soft_cap": 0.0}, "gate_soft_cap=0.0 must be positive, or null for no limit"),
        ({"chunkwise_kernel": "parallel--native_siging_custbw"}, "has a sigmoid input gate"),
        ({"ffn_round_up_to_multiple_of": 0}, "ffn_round_up_to_multiple_of=0 must be 1 or more"),
        ({"use_bias": 1}, "use_bias=1 must be of type bool"),
        ({"wings": 2}, "options that openxlstm does not know: wings"),
        ({"tie_word_embeddings": True}, "does not know: tie_word_embeddings"),  # not NX-AI's
    ],
)
def test_an_option_that_is_an_error(options: dict[str, Any], says: str) -> None:
    assert says in complaint({**NXAI, **options})


def test_two_names_of_an_option_must_agree() -> None:
    values = {**SEVEN_B, "hidden_size": 2048}
    assert "embedding_dim=4096 is not the same as hidden_size=2048" in complaint(
        values, hugging_face=True
    )


def test_a_head_that_is_said_to_be_tied() -> None:
    """It is where it is not there, or is the same; else it is a head of its own."""
    config = ModelConfig.from_options(**{**LARGE, "tie_weights": False})
    theirs = dict(to_theirs(large_rows(2, hugging_face=True), weights_of(random_model(config))))
    values, _ = write_hugging_face(config, "float32", {})
    values["tie_word_embeddings"] = True

    def reading() -> tuple[bool, int]:
        found = read_large_config(values, theirs, "config", hugging_face=True)
        return found.language_model.tie_weights, len(found.notes)

    assert reading() == (False, 1)
    theirs["lm_head.weight"] = theirs["backbone.embeddings.weight"].clone()
    assert reading() == (True, 0)
    del theirs["lm_head.weight"]
    assert reading() == (True, 0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_positions": 3}, "num_positions=3 has no counterpart in"),
        ({"final_norm": False}, "final_norm=False has no counterpart in Hugging Face's xLSTM"),
        ({"gate_soft_cap": 0.0}, "gate_soft_cap=0.0 has no counterpart"),
        ({"logit_soft_cap": 0.0}, "logit_soft_cap=0.0 has no counterpart"),
        ({"block": "paper", "layers": "ms"}, "block='paper' has no counterpart"),
    ],
)
def test_what_cannot_be_written(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        write_hugging_face(ModelConfig.from_options(**LARGE).replace(**options), "float32", {})


def test_what_is_different_there_is_said() -> None:
    config = ModelConfig.from_options(**{**LARGE, "dropout": 0.1})
    values, notes = write_hugging_face(config, "bfloat16", {"eos_token_id": 5})
    assert "dropout=0.1 is lost" in notes[0]
    assert "keys are 8 channels wide and values 16" in notes[1]
    assert values["use_cache"] is False
    assert (values["bos_token_id"], values["eos_token_id"]) == (None, 5)
    assert values["dtype"] == "bfloat16"
    wide = config.replace(embedding_dim=128)
    assert write_hugging_face(wide, "float32", {})[0]["use_cache"] is True
    assert write_nxai(config.replace(gate_soft_cap=0.0))[0]["gate_soft_cap"] is None
