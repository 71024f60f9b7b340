"""The key maps: there and back is the same to the bit, whatever the configuration."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_cases import LARGE, PAPER, assert_same, random_model, weights_of, widths
from safetensors.torch import load_file, save_file

from openxlstm.config import ModelConfig, PaperBlockConfig, StackConfig
from openxlstm.errors import UserError
from openxlstm.interop import nxai
from openxlstm.interop.keymap import (
    BIAS,
    RECURRENT,
    Layout,
    large_rows,
    layout_of,
    nxai_rows,
    nxai_slstm,
)
from openxlstm.interop.opening import open_foreign
from openxlstm.interop.translate import to_ours, to_theirs
from openxlstm.interop.writing import with_head, write_checkpoint
from openxlstm.interop.xlstm_large import read_large_config, write_nxai

EXAMPLES = settings(max_examples=25, deadline=None)
ANY = {"bias": st.booleans(), "final_norm": st.booleans(), "tie_weights": st.booleans()}
PAPERS = st.fixed_dictionaries(
    {
        **ANY,
        "vocab_size": st.integers(1, 5),
        "embedding_dim": st.sampled_from([4, 8, 24]),
        "layers": st.text("ms", min_size=1, max_size=3),
        "num_heads": st.sampled_from([1, 2, 4]),
        "mlstm_proj_factor": st.sampled_from([0.5, 1.3, 2.0, 8.0]),
        "mlstm_qkv_block_size": st.sampled_from([2, 4, 8]),
        "mlstm_conv_kernel_size": st.integers(1, 5),
        "slstm_conv_kernel_size": st.integers(0, 5),
        "slstm_ff_factor": st.sampled_from([0.0, 1.3, 4.0]),
        "slstm_recurrent_init": st.sampled_from(["zeros", "uniform"]),
    }
)
LARGES = st.fixed_dictionaries(
    {
        **ANY,
        "vocab_size": st.integers(1, 5),
        "embedding_dim": st.sampled_from([8, 24, 100]),
        "layers": st.text("m", min_size=1, max_size=3),
        "num_heads": st.sampled_from([1, 2, 4]),
        "qk_dim_factor": st.sampled_from([0.5, 1.0, 2.0]),
        "v_dim_factor": st.sampled_from([0.5, 1.0, 1.5]),
        "ff_factor": st.sampled_from([0.3, 2.667, 2.6667]),
        "ff_multiple": st.sampled_from([1, 8, 64]),
        "norm_eps": st.sampled_from([1e-5, 1e-6]),
        "eps": st.sampled_from([0.0, 1e-6]),
        "gate_soft_cap": st.sampled_from([1.5, 15.0]),
        "logit_soft_cap": st.sampled_from([3.0, 30.0]),
    }
)


def large_config(options: dict[str, Any]) -> ModelConfig | None:
    try:
        return ModelConfig.from_options(block="large", **options)
    except UserError:  # heads that do not divide the widths
        return None


def there_and_back(config: StackConfig, kind: Any) -> None:
    """What is written in a format and read again is the same model."""
    tensors = weights_of(random_model(config))
    if kind == "hf" and "stack.norm.bias" in tensors:
        tensors["stack.norm.bias"].zero_()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), config, tensors, kind)
        opened = open_foreign(Path(folder), kind)
        if kind == "hf" and config.tie_weights:  # pyright: ignore[reportAttributeAccessIssue]
            config = config.replace(tie_weights=False)
            tensors = dict(with_head(tensors))
        assert opened.config == config
        assert_same(opened.tensors, tensors)


@EXAMPLES
@given(PAPERS, st.booleans())
def test_openxlstm_to_nxai_and_back(options: dict[str, Any], is_model: bool) -> None:
    options = {**options, "mlstm_eps": 1e-6}
    defaults = PaperBlockConfig()
    for letter, prefix in (("m", "mlstm_"), ("s", "slstm_")):
        if letter not in options["layers"]:  # what no block has is not written
            own = {name for name in options if name.startswith(prefix) and name != "mlstm_eps"}
            options |= {name: getattr(defaults, name) for name in own}
    if options["layers"].strip("s") == "" and options["slstm_ff_factor"] == 0:
        options["bias"] = False  # there is nothing that could have one
    if not is_model:
        options = {k: v for k, v in options.items() if k not in ("vocab_size", "tie_weights")}
    there_and_back((ModelConfig if is_model else StackConfig).from_options(**options), "nxai")


@EXAMPLES
@given(LARGES)
def test_openxlstm_to_nxai_large_and_back(options: dict[str, Any]) -> None:
    config = large_config({**options, "tie_weights": False})
    if config is not None:
        there_and_back(config, "nxai")


@EXAMPLES
@given(LARGES)
def test_openxlstm_to_hugging_face_and_back(options: dict[str, Any]) -> None:
    config = large_config({**options, "final_norm": True})
    if config is not None:
        there_and_back(config, "hf")


@EXAMPLES
@given(PAPERS, st.data())
def test_nxai_to_openxlstm_and_back(options: dict[str, Any], data: st.DataObject) -> None:
    """Also where every sLSTM lies in a layout of its own."""
    config = ModelConfig.from_options(**{**options, "mlstm_eps": 1e-6})
    layouts: list[Layout] = [data.draw(st.sampled_from(list(RECURRENT))) for _ in config.layers]
    rows = nxai_rows(config.layers, layouts)
    theirs = dict(to_theirs(rows, with_head(weights_of(random_model(config)))))
    values, _ = nxai.write_paper_config(config)
    found = nxai.read_paper_config(values, theirs, "the configuration")
    shapes = {
        name: tuple(tensor.shape) for name, tensor in weights_of(random_model(config)).items()
    }
    ignore = {"lm_head.weight"} if config.tie_weights else set()
    ours = to_ours(found.rows, theirs, shapes, "the checkpoint", ignore=ignore)
    assert_same(to_theirs(found.rows, with_head(ours)), theirs)


@EXAMPLES
@given(LARGES)
def test_fused_weights_to_openxlstm_and_back(options: dict[str, Any]) -> None:
    config = large_config(options)
    if config is None:
        return
    rows = large_rows(len(config.layers), hugging_face=False, fused=True)
    tensors = weights_of(random_model(config.replace(tie_weights=False)))
    theirs = dict(to_theirs(rows, tensors))
    values, _ = write_nxai(config)
    # Widths come from the tensors, whatever the options say.
    values |= {"qk_dim_factor": 0.125, "v_dim_factor": 4.0, "ffn_proj_factor": 9.0}
    found = read_large_config(values, theirs, "the configuration", hugging_face=False)
    assert widths(found.config) == widths(config)
    ours = to_ours(found.rows, theirs, {k: tuple(v.shape) for k, v in tensors.items()}, "it")
    assert_same(ours, tensors)
    assert_same(to_theirs(found.rows, ours), theirs)


def test_the_gates_of_an_slstm_have_each_others_names() -> None:
    """Their `fgate` makes the input gate and `igate` the forget gate; recurrent weights and biases
    are in the order i, f, z, o all the same."""
    NH, DH = 2, 3
    gates = {name: torch.full((NH, DH, DH), float(i)) for i, name in enumerate("fizo")}
    theirs = {f"xlstm.{name}gate.weight": gate for name, gate in gates.items()}
    recurrent = torch.arange(4.0).repeat_interleave(DH)[None, :, None].expand(NH, 4 * DH, DH)
    theirs["xlstm.slstm_cell._recurrent_kernel_"] = recurrent
    theirs["xlstm.slstm_cell._bias_"] = torch.arange(4.0).repeat_interleave(NH * DH)
    shapes = {
        "layer.input_weight": (NH, 4, DH, DH),
        "layer.recurrent_weight": (NH, 4, DH, DH),
        "layer.bias": (NH, 4, DH),
    }
    ours = to_ours(nxai_slstm("vanilla"), theirs, shapes, "a block")
    for name in shapes:
        for place, letter in enumerate("ifzo"):
            assert bool((ours[name][:, place] == place).all()), (name, letter)
    assert torch.equal(ours["layer.input_weight"][:, 0], gates["f"])
    assert torch.equal(ours["layer.input_weight"][:, 1], gates["i"])


@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("head_dim", [1, 2, 5])
def test_layouts_of_an_slstm(num_heads: int, head_dim: int) -> None:
    """By the two formulas: R_vanilla = R_cuda.transpose(1, 2); biases (4, NH, DH), (NH, 4, DH)."""
    ours = torch.randn(num_heads, 4, head_dim, head_dim)
    vanilla, cuda = (RECURRENT[layout].write([ours])[0] for layout in ("vanilla", "cuda"))
    assert torch.equal(vanilla, cuda.transpose(1, 2))
    assert (layout_of(tuple(vanilla.shape)), layout_of(tuple(cuda.shape))) == ("vanilla", "cuda")
    bias = torch.randn(num_heads, 4, head_dim)
    vanilla, cuda = (BIAS[layout].write([bias])[0] for layout in ("vanilla", "cuda"))
    assert torch.equal(vanilla.view(4, num_heads, head_dim).transpose(0, 1), bias)
    assert torch.equal(cuda.view(num_heads, 4, head_dim), bias)


@pytest.mark.parametrize("options", [PAPER, LARGE], ids=["paper", "large"])
def test_every_weight_has_one_row(options: dict[str, Any]) -> None:
    """None is lost, and none comes from two places."""
    config = ModelConfig.from_options(**{**options, "bias": True})
    tables = (
        [nxai_rows(config.layers)]
        if config.block.kind == "paper"
        else [large_rows(2, hugging_face=hf, fused=fused) for hf in (0, 1) for fused in (0, 1)]  # pyright: ignore
    )
    for rows in tables:
        ours = [name for row in rows for name in row.ours]
        theirs = [name for row in rows for name in row.theirs]
        assert len(set(ours)) == len(ours)
        assert len(set(theirs)) == len(theirs)
        assert set(weights_of(random_model(config))) <= set(ours)


def test_written_files_are_read_by_others(tmp_path: Path) -> None:
    """Halves of one of our tensors are tensors of their own in a file."""
    config = ModelConfig.from_options(**PAPER)
    theirs = dict(to_theirs(nxai_rows(config.layers), weights_of(random_model(config))))
    save_file(theirs, tmp_path / "x.safetensors")
    assert_same(load_file(tmp_path / "x.safetensors"), theirs)
