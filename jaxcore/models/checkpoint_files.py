"""Reading safetensors checkpoints, one file or many with an index, slice by slice."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

# Registers bfloat16 with numpy, which safetensors needs to hand such tensors over.
import ml_dtypes  # noqa: F401  # isort: skip

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

_FLOATING = ("F64", "F32", "F16", "BF16")


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and its shape and safetensors dtype."""

    file: pathlib.Path
    name: str
    shape: tuple[int, ...]
    dtype: str


class TensorReader:
    """Opens the weight files of a directory and reads slices of their tensors; a context manager.

    Files are memory-mapped: only the slices asked for are copied.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._handles: dict[pathlib.Path, Any] = {}

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self._handles.clear()
        self._stack.close()

    def open_directory(self, directory: pathlib.Path) -> list[StoredTensor]:
        """All tensors of the checkpoint in `directory`.

        Raises:
            ValueError: no safetensors weights (pickled ones are refused), a file that the index names is
                missing or damaged, or index and files disagree.
        """
        if (directory / WEIGHTS).is_file():
            return self.open_file(directory / WEIGHTS)
        if not (directory / WEIGHTS_INDEX).is_file():
            raise ValueError(_no_weights(directory))
        weight_map = read_json(directory / WEIGHTS_INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{directory / WEIGHTS_INDEX}: no weight_map")
        files = [directory / name for name in sorted(set(weight_map.values()))]
        if missing := [file for file in files if not file.is_file()]:
            raise ValueError(f"{missing[0]}: named by the index, but missing")
        tensors = [tensor for file in files for tensor in self.open_file(file)]
        stored = {tensor.name: tensor.file.name for tensor in tensors}
        for name in sorted(set(weight_map) | set(stored)):
            if weight_map.get(name) != stored.get(name):
                raise ValueError(
                    f"{directory / WEIGHTS_INDEX}: tensor {name} should be in "
                    f"{weight_map.get(name, 'no file')}, but is in {stored.get(name, 'no file')}"
                )
        return tensors

    def read(self, tensor: StoredTensor, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of one tensor, in its stored dtype."""
        if not tensor.shape:
            return self._handles[tensor.file].get_tensor(tensor.name)
        return self._handles[tensor.file].get_slice(tensor.name)[index]

    def open_file(self, file: pathlib.Path) -> list[StoredTensor]:
        """All tensors of one file. Raises ValueError if it is missing or damaged."""
        if not file.is_file():
            raise ValueError(f"{file}: no such weight file")
        try:
            handle = self._stack.enter_context(safe_open(file, framework="np"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: not a readable safetensors file ({error}); fetch it again") from error
        self._handles[file] = handle
        tensors = []
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            view = handle.get_slice(name)
            tensors.append(StoredTensor(file, name, tuple(view.get_shape()), view.get_dtype()))
        return tensors


def check_floating(tensor: StoredTensor) -> None:
    """Raise ValueError for a tensor that is not plain floating point (quantised weights, say)."""
    if tensor.dtype not in _FLOATING:
        raise ValueError(f"{tensor.file}: tensor {tensor.name} has dtype {tensor.dtype}, expected one of {_FLOATING}")


def read_json(file: pathlib.Path) -> Any:
    """Contents of a JSON file. Raises ValueError, with the path, when it is missing or malformed."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error


def _no_weights(directory: pathlib.Path) -> str:
    pickled = sorted(directory.glob("*.bin")) + sorted(directory.glob("*.pt")) + sorted(directory.glob("*.ckpt"))
    if pickled:
        return (
            f"{directory}: only pickled weights ({pickled[0].name}), which are never read because loading "
            "them runs code; convert with transformers: AutoModel.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return f"{directory}: neither {WEIGHTS} nor {WEIGHTS_INDEX} found"
