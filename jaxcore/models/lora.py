"""Low-rank adapters of a decoder's weights (Hu et al. 2021), as a tree of their own beside the parameters.

    W' = W + (alpha / rank) A B      A: (inputs, rank), B: (rank, outputs)

Adapters belong to the linear layers as transformers names them ("q_proj", "c_attn"), so that they can be exchanged
with PEFT, whatever the shape in which the Decoder keeps the weights. Train them through `merge_adapters` inside the
loss: `jax.grad` with respect to the adapters alone leaves the model as it is.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxcore.models.checkpoint_files import StoredTensor, TensorReader, read_json
from jaxcore.models.decoder_config import DecoderConfig
from jaxcore.models.decoder_layout import decoder_layouts, decoder_prefix
from jaxcore.models.model_directories import write_json, write_tensors
from jaxcore.models.parameter_layout import Piece
from jaxcore.models.stored_parameters import flatten_paths, nest_paths

Adapters = dict[str, dict[str, Array]]
"""By linear layer ("layers.{}.self_attn.q_proj"): "a" (layers, inputs, rank) and "b" (layers, rank, outputs)."""

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Size and places of the adapters."""

    rank: int = 8
    """Inner width r."""
    alpha: float = 16.0
    """Numerator of the scale alpha / r."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Linear layers to adapt, by the end of their names in transformers; GPT-2 has c_attn, c_proj and c_fc."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be positive, got {self.rank}")
        if not self.targets:
            raise ValueError("targets must name one or more linear layers, got none")

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class _Site:
    """A linear layer of every block: which parameter holds its weights, and where in it."""

    path: str
    parameter_shape: tuple[int, ...]
    piece: Piece
    transposed: bool

    @property
    def groups(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes of `parameter[place]` (without that of the blocks) that inputs and outputs run over."""
        first, second = self.piece.axes
        return (second, first) if self.transposed else (first, second)

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.piece.shape(self.parameter_shape)

    @property
    def width(self) -> tuple[int, int]:
        """Numbers of inputs and outputs."""
        inputs, outputs = (math.prod(self.sizes[axis] for axis in group) for group in self.groups)
        return inputs, outputs


def init_adapters(key: Array, config: DecoderConfig, lora: LoraConfig) -> Adapters:
    """Fresh adapters: A uniform in +-1 / sqrt(inputs), as PEFT draws it, and B zero, so that W' = W at first.

    Raises:
        ValueError: a target that no linear layer of the model has (lists those there are).
    """
    sites = _chosen_sites(config, lora.targets)
    adapters = {}
    for (name, site), own in zip(sites.items(), jax.random.split(key, len(sites)), strict=True):
        inputs, outputs = site.width
        bound = 1 / math.sqrt(inputs)
        adapters[name] = {
            "a": jax.random.uniform(own, (config.num_layers, inputs, lora.rank), jnp.float32, -bound, bound),
            "b": jnp.zeros((config.num_layers, lora.rank, outputs), jnp.float32),
        }
    return adapters


def merge_adapters(
    params: Mapping[str, Any], adapters: Mapping[str, Any], config: DecoderConfig, *, scale: float
) -> dict[str, Any]:
    """The model's (stacked) parameters with `scale * A B` added to each adapted weight; differentiable in both.

    Raises:
        ValueError: an adapter for a linear layer that the model does not have, or of another shape.
    """
    sites, leaves = _sites(config), flatten_paths(params)
    for name, adapter in adapters.items():
        if name not in sites:
            raise ValueError(f"the model has no linear layer {name!r}, only {', '.join(sites)}")
        site, a, b = sites[name], adapter["a"], adapter["b"]
        inputs, outputs = site.width
        rank = a.shape[-1]
        expected = (config.num_layers, inputs, rank), (config.num_layers, rank, outputs)
        if (a.shape, b.shape) != expected:
            raise ValueError(
                f"adapter {name}: shapes {a.shape} and {b.shape}, expected {expected[0]} and {expected[1]}"
            )
        change = scale * jnp.einsum("lir,lro->lio", a, b)
        order = [axis for group in site.groups for axis in group]
        split = change.reshape(config.num_layers, *(site.sizes[axis] for axis in order))
        placed = split.transpose(0, *(axis + 1 for axis in np.argsort(order)))
        weights = leaves[site.path]
        index = (slice(None), *site.piece.place[1:])
        leaves[site.path] = jnp.asarray(weights).at[index].add(placed.astype(weights.dtype))
    return nest_paths(leaves)


def save_adapters(
    directory: str | os.PathLike[str],
    adapters: Mapping[str, Any],
    config: DecoderConfig,
    lora: LoraConfig,
    *,
    base_model: str = "",
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` that PEFT's `PeftModel.from_pretrained` loads.

    Args:
        directory: made if missing; adapters that are already there are replaced.
        adapters: from `init_adapters`, trained.
        config, lora: of the model and the adapters.
        base_model: path or hub id of the model, for PEFT's records.
    """
    path = pathlib.Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    (path / CONFIG_FILE).unlink(missing_ok=True)
    tensors = {}
    for name, adapter in adapters.items():
        for layer, stem in enumerate(_stored_names(name, config)):
            for part, matrix in (("lora_A", adapter["a"]), ("lora_B", adapter["b"])):
                tensors[f"{stem}.{part}.weight"] = np.ascontiguousarray(np.asarray(matrix[layer]).T)
    write_tensors(path / WEIGHTS_FILE, tensors)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(lora.targets),
        "fan_in_fan_out": config.architecture == "gpt2",
        "bias": "none",
        "inference_mode": True,
    }
    write_json(path / CONFIG_FILE, settings)


def load_adapters(directory: str | os.PathLike[str], config: DecoderConfig) -> tuple[Adapters, LoraConfig]:
    """Read adapters that PEFT or `save_adapters` wrote.

    Raises:
        ValueError: not LoRA, or a variant of it that we lack; tensors that do not fit the model; blocks left out.
    """
    path = pathlib.Path(directory)
    settings = read_json(path / CONFIG_FILE)
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{path / CONFIG_FILE}: peft_type {settings.get('peft_type')!r} is not supported, only 'LORA'")
    for option, plain in _PLAIN.items():
        if settings.get(option, plain) not in (plain, None):
            raise ValueError(f"{path / CONFIG_FILE}: {option}={settings[option]!r} is not supported, only {plain!r}")
    adapters: Adapters = {}
    with TensorReader() as reader:
        stored = {tensor.name: tensor for tensor in reader.open_file(path / WEIGHTS_FILE)}
        for name in _sites(config):
            stems = [
                f"base_model.model.{decoder_prefix(config)}{name.format(layer)}" for layer in range(config.num_layers)
            ]
            if any(f"{stem}.lora_A.weight" in stored for stem in stems):
                adapters[name] = {
                    matrix: jnp.asarray(
                        np.stack([_read(reader, stored, f"{stem}.{part}.weight", path) for stem in stems])
                    )
                    for matrix, part in (("a", "lora_A"), ("b", "lora_B"))
                }
        if stored:
            first = next(iter(stored.values()))
            raise ValueError(f"{first.file}: tensor {first.name} belongs to no linear layer of the model")
    targets = tuple(sorted({name.rsplit(".", 1)[-1] for name in adapters}))
    return adapters, LoraConfig(rank=settings["r"], alpha=float(settings["lora_alpha"]), targets=targets)


# Options of PEFT that change the equation, with the values under which it is the one above.
_PLAIN: dict[str, Any] = {
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}


def _stored_names(name: str, config: DecoderConfig) -> list[str]:
    """What PEFT calls a linear layer in each of the blocks."""
    return [f"base_model.model.{decoder_prefix(config)}{name.format(layer)}" for layer in range(config.num_layers)]


def _read(reader: TensorReader, stored: dict[str, StoredTensor], name: str, path: pathlib.Path) -> np.ndarray:
    """One matrix in our orientation, taken out of `stored`."""
    if name not in stored:
        raise ValueError(f"{path / WEIGHTS_FILE}: missing tensor {name}: adapters must cover every block")
    return reader.read(stored.pop(name), (slice(None), slice(None))).T.astype(np.float32)


def _sites(config: DecoderConfig) -> dict[str, _Site]:
    """Every linear layer of the blocks by its name with {} for the block's number."""
    sites = {}
    for path, layout in decoder_layouts(config).items():
        for piece in layout.pieces:
            stem = piece.tensor.removesuffix(".weight")
            if path.startswith("layers/") and len(piece.axes) == 2 and piece.place[0] == 0:
                first, _, rest = stem.partition(".0.")
                transposed = config.architecture != "gpt2"
                sites[f"{first}.{{}}.{rest}"] = _Site(path, layout.shape, piece, transposed)
    return sites


def _chosen_sites(config: DecoderConfig, targets: tuple[str, ...]) -> dict[str, _Site]:
    sites = _sites(config)
    chosen: dict[str, _Site] = {}
    for target in targets:
        found = {name: site for name, site in sites.items() if name == target or name.endswith(f".{target}")}
        if not found:
            known = sorted({name.rsplit(".", 1)[-1] for name in sites})
            raise ValueError(f"no linear layer of {config.architecture} is called {target!r}: use {', '.join(known)}")
        chosen |= found
    return chosen
