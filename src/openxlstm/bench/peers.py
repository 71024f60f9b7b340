"""The other implementations: all their imports, and how they are called.

xlstm            NX-AI's package: its v1 blocks. The sLSTM needs backend "vanilla" on a CPU.
mlstm_kernels    NX-AI's kernels, of which the ones in plain PyTorch run on a CPU
transformers     Hugging Face's xLSTM (the large block), which runs on xlstm where that is installed

A peer is imported when its comparison is built, so that unused peers are not imported.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from openxlstm.bench.forward_backward import ForwardBackward, differentiated, module_pass
from openxlstm.lm.cost import CHUNK

T = TypeVar("T")

PACKAGES = ("xlstm", "mlstm_kernels", "transformers")


@dataclass(frozen=True)
class Absent:
    """Stands in for a peer that cannot run."""

    why: str


def find(package: str, make: Callable[[], T]) -> T | Absent:
    """The result of `make`, or the reason why a package cannot run.

    A peer may be too old or lack a dependency; the others are measured all the same.
    """
    if importlib.util.find_spec(package) is None:
        return Absent("not installed")
    try:
        return make()
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return Absent(f"does not run: {type(error).__name__}: {first_line}")


def versions() -> dict[str, str]:
    """The versions of the installed peers."""
    return {name: version(name) for name in PACKAGES if importlib.util.find_spec(name)}


def version(package: str) -> str:
    """The version of a package; "unknown" if it is importable but not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# ---- ops --------------------------------------------------------------------------------------


def mlstm_parallel() -> Callable[..., Tensor]:
    """The code of NX-AI's v1 models on a CPU: (q, k, v, i_preact, f_preact) → h."""
    from xlstm.blocks.mlstm.backends import (  # pyright: ignore[reportMissingImports]
        parallel_stabilized_simple,
    )

    return lambda q, k, v, i, f: parallel_stabilized_simple(
        q, k, v, i[..., None], f[..., None], eps=0
    )


def mlstm_chunkwise() -> Callable[..., Tensor]:
    """The fastest of NX-AI's kernels on a CPU: (q, k, v, i_preact, f_preact) → h."""
    from mlstm_kernels.torch import get_mlstm_kernel  # pyright: ignore[reportMissingImports]

    kernel = get_mlstm_kernel("chunkwise--native_autograd")
    return lambda q, k, v, i, f: kernel(q, k, v, i, f, chunk_size=CHUNK, eps=0.0)


def nxai_slstm_cell(inputs: list[Tensor], dh: Tensor) -> ForwardBackward:
    """NX-AI's cell on x, recurrent weight and bias, with results in openxlstm's layout."""
    from xlstm.blocks.slstm.cell import (  # pyright: ignore[reportMissingImports]
        sLSTMCell,
        sLSTMCellConfig,
    )

    x, recurrent_weight, bias = (tensor.detach() for tensor in inputs)
    B, T, NH, _, DH = x.shape
    cell = sLSTMCell(
        sLSTMCellConfig(hidden_size=NH * DH, num_heads=NH, backend="vanilla", dtype="float32")
    )
    cell._recurrent_kernel_.data = recurrent_weight.reshape(NH, 4 * DH, DH).clone()
    cell._bias_.data = bias.transpose(0, 1).flatten().clone()
    flat = x.transpose(2, 3).reshape(B, T, 4 * NH * DH).requires_grad_()  # gate by gate
    leaves = [flat, cell._recurrent_kernel_, cell._bias_]
    forward_backward = differentiated(
        lambda: cell(flat)[0], leaves, dh.transpose(1, 2).contiguous()
    )

    def run() -> list[Tensor]:
        h, dx, dR, db = forward_backward()
        return [
            h.transpose(1, 2),
            dx.view(B, T, 4, NH, DH).transpose(2, 3),
            dR.view(NH, 4, DH, DH),
            db.view(4, NH, DH).transpose(0, 1),
        ]

    return run


def nxai_slstm_block(B: int, T: int, NH: int, DH: int) -> ForwardBackward:
    """NX-AI's block around its cell: norms, convolution, gates, feed-forward."""
    from xlstm import (  # pyright: ignore[reportMissingImports]
        FeedForwardConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMBlockStack,
        xLSTMBlockStackConfig,
    )

    layer = sLSTMLayerConfig(num_heads=NH, backend="vanilla", dtype="float32")
    config = xLSTMBlockStackConfig(
        slstm_block=sLSTMBlockConfig(
            slstm=layer, feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu")
        ),
        context_length=T,
        num_blocks=1,
        embedding_dim=NH * DH,
        add_post_blocks_norm=False,
    )
    return module_pass(xLSTMBlockStack(config), B, T, NH * DH)


# ---- models -----------------------------------------------------------------------------------


def nxai_model(
    layers: str, vocab_size: int, embedding_dim: int, num_heads: int, context_length: int
) -> nn.Module:
    """NX-AI's v1 language model with the paper's blocks."""
    from xlstm import (  # pyright: ignore[reportMissingImports]
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMLMModel,
        xLSTMLMModelConfig,
    )

    slstm = sLSTMLayerConfig(num_heads=num_heads, backend="vanilla", dtype="float32")
    config = xLSTMLMModelConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        num_blocks=len(layers),
        embedding_dim=embedding_dim,
        slstm_at=[place for place, kind in enumerate(layers) if kind == "s"],
        mlstm_block=mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=num_heads)),
        slstm_block=sLSTMBlockConfig(
            slstm=slstm, feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu")
        ),
    )
    model = xLSTMLMModel(config)
    model.reset_parameters()
    return model


def nxai_generate(model: Any, num_tokens: int) -> list[int]:
    """Reads token 0, then generates greedily."""
    tokens: list[int] = []
    ids, state = torch.zeros(1, 1, dtype=torch.long), None
    with torch.inference_mode():
        for _ in range(num_tokens):
            logits, state = model.step(ids, state=state)
            ids = logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
    return tokens


def hugging_face_model(
    num_blocks: int,
    vocab_size: int,
    embedding_dim: int,
    num_heads: int,
    mode: Literal["train", "inference"],
) -> nn.Module:
    """Hugging Face's language model, in float32 throughout."""
    from transformers import (  # pyright: ignore[reportMissingImports]
        xLSTMConfig,
        xLSTMForCausalLM,
    )

    config = xLSTMConfig(
        vocab_size=vocab_size,
        hidden_size=embedding_dim,
        num_hidden_layers=num_blocks,
        num_heads=num_heads,
        mode=mode,
        use_cache=mode == "inference",
        autocast_kernel_dtype="float32",
    )
    return xLSTMForCausalLM(config)


def hugging_face_generate(model: Any, num_tokens: int) -> list[int]:
    """Reads token 0, then generates greedily with the model's cache."""
    tokens: list[int] = []
    ids, cache = torch.zeros(1, 1, dtype=torch.long), None
    with torch.inference_mode():
        for _ in range(num_tokens):
            output = model(input_ids=ids, cache_params=cache, use_cache=True)
            cache = output.cache_params
            ids = output.logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
    return tokens
