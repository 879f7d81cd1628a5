"""Steering: directions added to a decoder's activations in every call, and the file that keeps them.

    h'  = h + strength v_l,       h'' = h' |h| / (|h'| + 1e-8)        (per position, behind block l)

    steered = generate(model, params, ids, mask, max_new_tokens=64, edits=steering_edits(vectors, 2.0))

The edits are those of `jaxcore.transforms.intervene`: one holds while the prompt is read and in every decoding step
alike, under `jit`, and in any other call of the model. Strength 0 is the identity to the last bit.

Source: Nguyen et al. 2025, equation 5, with the norm over features (the released code takes it over time).
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxcore.models import DecoderConfig

Site = Literal["layer_output", "attention_heads"]
_VECTORS, _HEADER = "vectors", "steering"


@dataclasses.dataclass(frozen=True, eq=False)
class SteeringVectors:
    """What is added, where.

    Raises:
        ValueError: an unknown site, vectors of the wrong rank, layers that repeat or do not fit vectors and model.
    """

    vectors: Float[np.ndarray, "steered ..."]
    """One per steered layer: (hidden,) behind a block, (heads, head_size) at its attention heads."""
    layers: tuple[int, ...]
    """The steered layers, counted from 0."""
    num_layers: int
    """Of the model."""
    site: Site = "layer_output"
    """The residual stream behind each block, or the outputs of attention heads before they are mixed."""
    norm_preserving: bool = True
    """Whether each state keeps its length; heads are shifted without."""
    method: str = ""
    """How the directions were found."""

    def __post_init__(self) -> None:
        rank = {"layer_output": 2, "attention_heads": 3}.get(self.site)
        if rank is None:
            raise ValueError(f"site must be one of {', '.join(get_args(Site))}: got {self.site!r}")
        if np.ndim(self.vectors) != rank or len(self.vectors) != len(self.layers):
            raise ValueError(
                f"vectors at {self.site} must have {rank} axes and one entry for each of the layers {self.layers}: got "
                f"shape {np.shape(self.vectors)}"
            )
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers must name one or more different layers: got {self.layers}")
        if not all(0 <= layer < self.num_layers for layer in self.layers):
            raise ValueError(f"layers {self.layers} are not all in 0 to {self.num_layers - 1}, those of the model")

    def digest(self) -> str:
        """SHA-256 of the vectors and of where they belong: equal digests mean equal steering, to the last bit."""
        places = [self.layers, self.num_layers, self.site, self.norm_preserving]
        values = np.ascontiguousarray(self.vectors, np.float32)
        return hashlib.sha256(json.dumps(places).encode() + values.tobytes()).hexdigest()

    def dense(self) -> Float[Array, "layers ..."]:
        """A vector for every layer of the model, zero where it is not steered."""
        shape = (self.num_layers, *self.vectors.shape[1:])
        return jnp.zeros(shape, jnp.float32).at[jnp.asarray(self.layers)].set(jnp.asarray(self.vectors, jnp.float32))


def steering_edits(steering: SteeringVectors, strength: Any) -> dict[str, Any]:
    """The edits of `generate`, `complete` and `intervene` that add ``strength * vectors`` in the steered layers.

    The vectors are arguments of the compiled program: another strength, or other vectors, compile nothing anew.

    Args:
        strength: a number, possibly traced; negative steers the other way.
    """
    return shift_edits(steering.dense() * strength, site=steering.site, norm_preserving=steering.norm_preserving)


def shift_edits(
    shifts: Float[Array, "layers ..."], *, site: Site = "layer_output", norm_preserving: bool = True
) -> dict[str, Any]:
    """The edits that add each layer's shift; zero leaves the layer as it is."""
    return {site: jax.tree_util.Partial(_add_keeping_norm if norm_preserving else _add, shifts)}


def _add(shifts: Array, value: Array, *, step: Any) -> Array:
    return (value.astype(jnp.float32) + shifts[step]).astype(value.dtype)


def _add_keeping_norm(shifts: Array, value: Array, *, step: Any) -> Array:
    shift, state = shifts[step], value.astype(jnp.float32)
    moved = state + shift
    scale = jnp.linalg.norm(state, axis=-1, keepdims=True) / (jnp.linalg.norm(moved, axis=-1, keepdims=True) + 1e-8)
    return jnp.where(jnp.any(shift != 0), moved * scale, state).astype(value.dtype)


def chosen_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """Layers from "all", "last", or numbers such as "3", "0,5,7" and "4-9"; negative numbers count from the end.

    Raises:
        ValueError: anything else, or a layer that the model does not have.
    """
    if text == "all":
        return tuple(range(num_layers))
    if text == "last":
        return (num_layers - 1,)
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-") if not part.strip().startswith("-") else (part.strip(), "", "")
        try:
            start = int(first)
            layers += range(start, int(last) + 1) if dash else [start + num_layers if start < 0 else start]
        except ValueError:
            raise ValueError(f'layers must be "all", "last" or numbers such as 0,5,7 or 4-9: got {text!r}') from None
    if outside := [layer for layer in layers if not 0 <= layer < num_layers]:
        raise ValueError(f"layer {outside[0]} is outside the model, whose layers are 0 to {num_layers - 1}")
    if not layers:
        raise ValueError(f"layers {text!r} names no layer")
    return tuple(dict.fromkeys(layers))


# ---- files -----------------------------------------------------------------------------------------------


def save_steering(
    path: str | os.PathLike[str], steering: SteeringVectors, *, facts: Mapping[str, str] | None = None
) -> None:
    """One safetensors file: the vectors, and in its header where they belong; under its name only when complete.

    Args:
        facts: kept in the header for readers (the model's name, the data).
    """
    file = pathlib.Path(path)
    described = {
        "layers": list(steering.layers),
        "num_layers": steering.num_layers,
        "site": steering.site,
        "norm_preserving": steering.norm_preserving,
        "method": steering.method,
    }
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        vectors = np.ascontiguousarray(np.asarray(steering.vectors, np.float32))
        save_file({_VECTORS: vectors}, temporary, metadata={_HEADER: json.dumps(described), **(facts or {})})
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def load_steering(path: str | os.PathLike[str], config: DecoderConfig | None = None) -> SteeringVectors:
    """What `save_steering` wrote.

    Args:
        config: of the model that is to be steered; None = unchecked.

    Raises:
        ValueError: no such file, no steering vectors in it, numbers that are not finite, vectors of a model of another
            shape.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"{file}: no such file; `jaxcore steer --pairs ... --output {file}` makes one")
    try:
        with safe_open(file, framework="np") as stored:
            header = (stored.metadata() or {}).get(_HEADER)
            vectors = stored.get_tensor(_VECTORS) if header and _VECTORS in stored.keys() else None  # noqa: SIM118
        described = json.loads(header) if header else {}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a readable file of steering vectors ({error})") from error
    if vectors is None:
        raise ValueError(f"{file}: a safetensors file, but not one of steering vectors")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{file}: vectors that are not finite")
    try:
        steering = SteeringVectors(vectors, layers=tuple(described.pop("layers")), **described)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file}: its header does not describe steering vectors ({error})") from error
    if config is not None:
        check_fits(steering, config, name=str(file))
    return steering


def check_fits(steering: SteeringVectors, config: DecoderConfig, *, name: str = "steering vectors") -> None:
    """ValueError unless the vectors are those of a model of this shape."""
    shape = (config.hidden_size,) if steering.site == "layer_output" else (config.num_heads, config.head_size)
    given = steering.vectors.shape[1:]
    if (steering.num_layers, given) != (config.num_layers, shape):
        raise ValueError(
            f"{name}: vectors {given} at {steering.site} of a model with {steering.num_layers} layers, but this model "
            f"has {config.num_layers} layers and takes {shape}; build them anew for this model"
        )
