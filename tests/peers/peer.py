"""The original implementations, each in a process of its own: makes their checkpoints, with random
weights of which none is 0, and says what logits they give.

    python peer.py make KIND FOLDER [--options JSON] [--hide-xlstm]
    python peer.py read KIND FOLDER [--hide-xlstm]

Both write FOLDER/logits.safetensors: ids (B, T); whole, the logits in one pass; steps, those of one
token at a time; and, where Hugging Face's is read, generated: what it says after ids[:1, :5]. KIND
is nxai, nxai-large or hf. openxlstm is not imported here.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LENGTH = 131  # no multiple of any chunk
NATIVE: dict[str, Any] = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "mode": "inference",
    "return_last_states": True,
    "autocast_kernel_dtype": "float32",
}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random and not 0, in sizes at which everything matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
            assert parameter.count_nonzero() == parameter.numel()
    return model.eval()


# ---- NX-AI xlstm ------------------------------------------------------------------------------


def make_nxai(folder: Path, options: Mapping[str, Any]) -> nn.Module:
    """`xLSTMLMModel`, saved with a configuration; option layout: vanilla or cuda."""
    options = dict(options)
    layout = options.pop("layout", "vanilla")
    model = randomize(nxai_model(options))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if layout == "cuda":
        tensors |= in_cuda_layout(model)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": options}))
    return model


def read_nxai(folder: Path) -> nn.Module:
    model = nxai_model(yaml.safe_load((folder / "config.yaml").read_text()))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def nxai_model(options: Mapping[str, Any]) -> nn.Module:
    from dacite import Config, from_dict
    from xlstm.xlstm_lm_model import xLSTMLMModel, xLSTMLMModelConfig

    return xLSTMLMModel(from_dict(xLSTMLMModelConfig, options, config=Config(strict=True)))


def in_cuda_layout(model: Any) -> dict[str, Tensor]:
    """The sLSTM's own tensors as the package's CUDA cell keeps them, which no CPU can run."""
    from xlstm.blocks.slstm.cell import sLSTMCell_cuda as Cuda
    from xlstm.blocks.slstm.cell import sLSTMCell_vanilla as Vanilla

    tensors = {}
    for name, cell in model.named_modules():
        if isinstance(cell, Vanilla):
            weight = cell._recurrent_kernel_int2ext(cell._recurrent_kernel_.detach())
            bias = cell._bias_int2ext(cell._bias_.detach())
            weight, bias = (
                Cuda._recurrent_kernel_ext2int(cell, weight),  # pyright: ignore
                Cuda._bias_ext2int(cell, bias),  # pyright: ignore
            )
            tensors[f"{name}._recurrent_kernel_"] = weight.clone().contiguous()
            tensors[f"{name}._bias_"] = bias.clone().contiguous()
    return tensors


def run_nxai(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    steps, state = [], None
    for step in ids.split(1, dim=1):
        logits, state = model.step(step, state=state)
        steps.append(logits)
    return model(ids), torch.cat(steps, 1)


# ---- NX-AI xlstm_large ------------------------------------------------------------------------


def make_large(folder: Path, options: Mapping[str, Any]) -> nn.Module:
    from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig

    config = xLSTMLargeConfig(**{**NATIVE, **options})
    model = randomize(xLSTMLarge(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    return model


def read_large(folder: Path) -> nn.Module:
    from xlstm.xlstm_large.from_pretrained import load_from_pretrained

    return load_from_pretrained(folder).eval()


def run_large(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    whole, _ = model(ids)
    steps, state = [], None
    for step in ids.split(1, dim=1):
        logits, state = model(step, state)
        steps.append(logits)
    return whole, torch.cat(steps, 1)


# ---- Hugging Face -----------------------------------------------------------------------------


def make_hf(folder: Path, options: Mapping[str, Any]) -> nn.Module:
    from transformers import xLSTMConfig, xLSTMForCausalLM

    model = randomize(xLSTMForCausalLM(xLSTMConfig(**{**NATIVE, **options})))
    model.save_pretrained(folder, max_shard_size="200KB")  # pyright: ignore
    return model


def read_hf(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def run_hf(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    whole = model(ids, use_cache=False).logits
    if model.config.qk_dim != int(model.config.hidden_size * model.config.qk_dim_factor):
        return whole, whole  # its cache cannot be used: it has other widths than its layers
    steps, cache = [], None
    for step in ids.split(1, dim=1):
        out = model(step, cache_params=cache, use_cache=True)
        cache = out.cache_params
        steps.append(out.logits)
    return whole, torch.cat(steps, 1)


KINDS = {
    "nxai": (make_nxai, read_nxai, run_nxai),
    "nxai-large": (make_large, read_large, run_large),
    "hf": (make_hf, read_hf, run_hf),
}


def hide_xlstm() -> None:
    """Has transformers do without the package xlstm, which it uses where it finds it."""
    import transformers.utils
    import transformers.utils.import_utils as imports

    transformers.utils.is_xlstm_available = imports.is_xlstm_available = lambda: False


def vocab_size(model: Any) -> int:
    return model.lm_head.weight.shape[0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["make", "read"])
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--length", type=int, default=LENGTH)
    parser.add_argument("--hide-xlstm", action="store_true")
    arguments = parser.parse_args()
    if arguments.hide_xlstm:
        hide_xlstm()
    make, read, run = KINDS[arguments.kind]
    model: Any
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if arguments.action == "make":
        model = make(arguments.folder, arguments.options)
    else:
        model = read(arguments.folder)
    ids = torch.randint(vocab_size(model), (2, arguments.length))
    with torch.no_grad():
        whole, steps = run(model, ids)
    logits = {"ids": ids, "whole": whole.contiguous(), "steps": steps.clone().contiguous()}
    if arguments.action == "read" and arguments.kind == "hf":
        given = {"attention_mask": torch.ones(1, 5, dtype=torch.long), "do_sample": False}
        logits["generated"] = model.generate(ids[:1, :5], max_new_tokens=12, **given)
    save_file(logits, arguments.folder / "logits.safetensors")
    uses = sorted({"xlstm", "transformers"} & {name.split(".")[0] for name in sys.modules})
    print(json.dumps({"uses": uses, "external": uses_xlstm()}))


def uses_xlstm() -> bool:
    """Whether transformers' model is made of the package xlstm's parts."""
    module = sys.modules.get("transformers.models.xlstm.modeling_xlstm")
    return module is not None and module.external_xlstm


if __name__ == "__main__":
    main()
