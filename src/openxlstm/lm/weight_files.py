"""Tensors in safetensors files, by name: one file, or several with an index.

Tensors are mapped: their bytes are read from the file when they are first used, and stay in the
system's page cache, which processes share. Writing to such a tensor changes memory, never the file.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openxlstm.errors import UserError
from openxlstm.files import read_json, sync, write_atomically, write_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-?????-of-?????.safetensors"
"""Names of the files of an index, as `save_weights` chooses them."""


class Weights(Mapping[str, Tensor]):
    """The tensors of safetensors files. A tensor is mapped when it is looked up."""

    def __init__(self, files: list[Path]) -> None:
        """
        Args:
            files: at least one.

        Raises:
            UserError: if a file is missing, truncated or not a safetensors file, or if two files
                have a tensor of the same name.
        """
        self._places: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._files: dict[Path, Any] = {}
        for path in files:
            self._files[path] = file = open_file(path)
            for name in sorted(file.keys()):
                if name in self._places:
                    other = self._places[name].name
                    raise UserError(f"{path} holds {name}, which {other} holds as well")
                part = file.get_slice(name)
                self._places[name], self._shapes[name] = path, tuple(part.get_shape())
                self._dtypes[name] = _dtype(path, name, part.get_dtype())

    def __getitem__(self, name: str) -> Tensor:
        return self._files[self._places[name]].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def copy_of(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of the tensor; the file's pages are released."""
        tensor = open_file(self._places[name]).get_tensor(name)
        return tensor.to(dtype or tensor.dtype, copy=True)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._dtypes[name]

    def place(self, name: str) -> Path:
        """The file of a tensor."""
        return self._places[name]

    @property
    def source(self) -> Path:
        """The file, or the folder of several files, for error messages."""
        first = next(iter(self._files))
        return first if len(self._files) == 1 else first.parent


def open_weights(path: str | Path) -> Weights:
    """Opens the weights in a safetensors file, in the files of an index, or in a folder.

    In a folder they are in `model.safetensors`, in the files of `model.safetensors.index.json`, or
    in `model_0.safetensors`, `model_1.safetensors` and so on. No tensor is read.

    Raises:
        UserError: if there are none, or a file is missing, truncated or not a safetensors file, or
            an index does not fit its files.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file():
        return _indexed(path) if path.suffix == ".json" else Weights([path])
    if (path / WEIGHTS).exists():
        return Weights([path / WEIGHTS])
    if (path / INDEX).exists():
        return _indexed(path / INDEX)
    numbered = list(path.glob("model_*.safetensors"))
    if numbered:
        files = [path / f"model_{number}.safetensors" for number in range(len(numbered))]
        return Weights(files)
    raise UserError(f"{path} has no weights: there is no {WEIGHTS} or {INDEX} in it")


def open_file(path: Path) -> Any:
    """Opens a safetensors file, and checks its header.

    Raises:
        UserError: if the file is missing, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error})") from None


def save_weights(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    shard_bytes: int | None = None,
) -> None:
    """Writes `model.safetensors`; or, if the tensors take more than `shard_bytes`, several files
    and `model.safetensors.index.json`.

    A tensor is looked up when its file is written, and released afterwards, so that memory holds
    the tensors of one file at most. Files are put in place when all of them are complete.

    Raises:
        OSError: if a file cannot be written: no space, no permission.
    """
    shards = _shards(tensors, shard_bytes)
    if len(shards) == 1:
        write_atomically(folder / WEIGHTS, lambda path: write_file(path, tensors))
        for stale in (folder / INDEX, *folder.glob(SHARDS)):
            stale.unlink(missing_ok=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"model-{number:05}-of-{len(shards):05}.safetensors": names
        for number, names in enumerate(shards, 1)
    }
    size, places = 0, dict[str, str]()
    unfinished = Path(tempfile.mkdtemp(prefix=".weights.", suffix=".tmp", dir=folder))
    try:
        for file, names in files.items():
            shard = {name: tensors[name] for name in names}
            size += sum(tensor.nbytes for tensor in shard.values())
            places |= dict.fromkeys(names, file)
            write_atomically(unfinished / file, lambda path, shard=shard: write_file(path, shard))
            del shard
        for file in files:
            (unfinished / file).replace(folder / file)
        sync(folder)
        write_json(folder / INDEX, {"metadata": {"total_size": size}, "weight_map": places})
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for stale in ({folder / WEIGHTS} | set(folder.glob(SHARDS))) - {
        folder / file for file in files
    }:
        stale.unlink(missing_ok=True)


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes one safetensors file.

    Raises:
        OSError: if it cannot be written.
    """
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(values, path, {"format": "pt"})  # transformers requires it
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written ({error})") from None


def _shards(tensors: Mapping[str, Tensor], most: int | None) -> list[list[str]]:
    """The names of each file's tensors, in order. A tensor larger than `most` has its own file."""
    if most is None:
        return [list(tensors)]
    shards: list[list[str]] = [[]]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > most:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += tensor.nbytes
    return shards


def _indexed(path: Path) -> Weights:
    """The weights in the files of an index."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} is damaged: it has no weight_map")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise UserError(f"{path} places {name} in {file!r}, which is not a file beside it")
    weights = Weights([path.parent / file for file in sorted(set(places.values()))])
    for name, file in places.items():
        if name not in weights or weights.place(name).name != file:
            raise UserError(f"{path} places {name} in {file}, which does not have it")
    return weights


def _dtype(path: Path, name: str, code: str) -> torch.dtype:
    kinds = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
        "U8": torch.uint8, "BOOL": torch.bool,
    }  # fmt: skip
    if code not in kinds:
        raise UserError(
            f"{path} has {name} of type {code}, which is not supported; convert it first"
        )
    return kinds[code]
