"""Scores of candidates under inputs: how well each candidate fits, one number per pair.

Every scorer takes inputs [B, D] and candidates that are either shared by all inputs, [C, D'], or each input's own,
[B, C, D'], and returns scores [B, C] in float32. Those with weights come with a function that draws them; weights are
plain dictionaries of arrays, to be placed in whatever parameter tree a model has.

Source of the list: Rethmeier and Augenstein 2023 and the methods it surveys, named at each scorer.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcore.losses.input_checks import check_positive, check_temperature
from jaxcore.losses.similarity import unit_vectors

Candidates = Float[Array, "shared dim"] | Float[Array, "batch own dim"]
Weights = Mapping[str, Array]


def dot_scores(inputs: Float[Array, "batch dim"], candidates: Candidates) -> Float[Array, "batch candidates"]:
    """``s(u, v) = <u, v>``; ValueError on shapes that do not fit."""
    _check_scored(inputs, candidates, same_width=True)
    return _products(_wide(inputs), _wide(candidates))


def cosine_scores(
    inputs: Float[Array, "batch dim"], candidates: Candidates, *, temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, "batch candidates"]:
    """``s(u, v) = <u, v> / (|u| |v| tau)``; the zero vector scores 0 with everything.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive.
    """
    _check_scored(inputs, candidates, same_width=True)
    check_temperature(temperature)
    return _products(unit_vectors(inputs), unit_vectors(candidates)) / temperature


def mean_product_scores(inputs: Float[Array, "batch dim"], candidates: Candidates) -> Float[Array, "batch candidates"]:
    """``s(u, v) = (1/D) sum_d u_d v_d``: the dot product on a scale that does not grow with the width.

    Raises:
        ValueError: shapes that do not fit.

    Source: Wang et al. 2021 (CLINE).
    """
    return dot_scores(inputs, candidates) / inputs.shape[1]


def init_bilinear(key: Array, *, input_size: int, candidate_size: int, num_relations: int = 1) -> Weights:
    """Weights of `bilinear_scores`: ``kernel`` [relations, input, candidate], normal with variance 1 / input_size."""
    _check_sizes(input_size=input_size, candidate_size=candidate_size, num_relations=num_relations)
    return {"kernel": _draw(key, (num_relations, input_size, candidate_size), input_size)}


def bilinear_scores(
    weights: Weights,
    inputs: Float[Array, "batch dim"],
    candidates: Candidates,
    *,
    relation: int | Int[Array, ""] | Int[Array, " batch"] = 0,
) -> Float[Array, "batch candidates"]:
    """``s(u, v) = u' W_r v``, one matrix for each relation r.

    Args:
        weights: of `init_bilinear`.
        inputs: [B, D].
        candidates: [C, D'] or [B, C, D'].
        relation: r of all inputs, or of each, [B].

    Raises:
        ValueError: shapes that do not fit the weights.

    Source: van den Oord et al. 2018, eq. 3; one matrix per distance: Iter et al. 2020 (CONPONO).
    """
    kernel = _wide(weights["kernel"])
    _check_scored(inputs, candidates, input_size=kernel.shape[1], candidate_size=kernel.shape[2])
    of_input = kernel[relation]
    equation = "bd,bde->be" if of_input.ndim == 3 else "bd,de->be"
    return _products(jnp.einsum(equation, _wide(inputs), of_input), _wide(candidates))


def init_joint(key: Array, *, input_size: int, candidate_size: int, joint_size: int) -> Weights:
    """Weights of `joint_scores`: two projections with biases, and the vector that reads their product."""
    _check_sizes(input_size=input_size, candidate_size=candidate_size, joint_size=joint_size)
    of_input, of_candidate, of_output = jax.random.split(key, 3)
    return {
        "input_kernel": _draw(of_input, (input_size, joint_size), input_size),
        "candidate_kernel": _draw(of_candidate, (candidate_size, joint_size), candidate_size),
        "output_kernel": _draw(of_output, (joint_size,), joint_size),
        "input_bias": jnp.zeros(joint_size),
        "candidate_bias": jnp.zeros(joint_size),
        "bias": jnp.zeros(()),
    }


def joint_scores(
    weights: Weights,
    inputs: Float[Array, "batch dim"],
    candidates: Candidates,
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
) -> Float[Array, "batch candidates"]:
    """``s(u, v) = <w, g(U u + a) * g(V v + c)> + b``: linear in a *product* of two activated projections.

    Args:
        weights: of `init_joint`.
        inputs: [B, D].
        candidates: [C, D'] or [B, C, D'].
        activation: g.

    Raises:
        ValueError: shapes that do not fit the weights.

    Source: Pappas and Henderson 2019 (GILE), eq. 9-11.
    """
    _check_scored(
        inputs, candidates, input_size=len(weights["input_kernel"]), candidate_size=len(weights["candidate_kernel"])
    )
    of_inputs = activation(_wide(inputs) @ weights["input_kernel"] + weights["input_bias"])
    of_candidates = activation(_wide(candidates) @ weights["candidate_kernel"] + weights["candidate_bias"])
    return _products(of_inputs * weights["output_kernel"], of_candidates) + weights["bias"]


def init_concat_mlp(
    key: Array, *, input_size: int, candidate_size: int, hidden_sizes: Sequence[int] = (128, 128)
) -> Weights:
    """Weights of `concat_mlp_scores`: ``input_kernel`` and ``candidate_kernel`` of the first layer, ``kernel_i`` and
    ``bias_i`` of the others; He's normal."""
    _check_sizes(input_size=input_size, candidate_size=candidate_size)
    if not hidden_sizes or min(hidden_sizes) < 1:
        raise ValueError(f"hidden_sizes must name at least one positive width: got {tuple(hidden_sizes)}")
    keys = jax.random.split(key, len(hidden_sizes) + 2)
    together = (input_size + candidate_size) / 2  # He: variance 2 / (width of [v; u])
    weights = {
        "input_kernel": _draw(keys[0], (input_size, hidden_sizes[0]), together),
        "candidate_kernel": _draw(keys[1], (candidate_size, hidden_sizes[0]), together),
        "bias_0": jnp.zeros(hidden_sizes[0]),
    }
    for layer, (size_in, size_out) in enumerate(zip(hidden_sizes, [*hidden_sizes[1:], 1], strict=True), start=1):
        weights[f"kernel_{layer}"] = _draw(keys[layer + 1], (size_in, size_out), size_in / 2)
        weights[f"bias_{layer}"] = jnp.zeros(size_out)
    return weights


def concat_mlp_scores(
    weights: Weights,
    inputs: Float[Array, "batch dim"],
    candidates: Candidates,
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> Float[Array, "batch candidates"]:
    """``s(u, v) = MLP([v; u])``, the perceptron reading both vectors side by side.

    The first layer is applied to u and to v apart and added, which is the same as applying it to [v; u] without
    repeating u for every candidate.

    Args:
        weights: of `init_concat_mlp`.
        inputs: [B, D].
        candidates: [C, D'] or [B, C, D'].
        activation: of the hidden layers.

    Raises:
        ValueError: shapes that do not fit the weights.

    Source: Rethmeier and Augenstein 2022 (CLESS), section 3.
    """
    _check_scored(
        inputs, candidates, input_size=len(weights["input_kernel"]), candidate_size=len(weights["candidate_kernel"])
    )
    of_inputs = _wide(inputs) @ weights["input_kernel"] + weights["bias_0"]
    hidden = activation(of_inputs[:, None] + _wide(candidates) @ weights["candidate_kernel"])
    last = sum(name.startswith("kernel_") for name in weights)
    for layer in range(1, last + 1):
        hidden = hidden @ weights[f"kernel_{layer}"] + weights[f"bias_{layer}"]
        hidden = hidden if layer == last else activation(hidden)
    return hidden[..., 0]


def _products(inputs: Array, candidates: Array) -> Array:
    equation = "bd,cd->bc" if candidates.ndim == 2 else "bd,bcd->bc"
    return jnp.einsum(equation, inputs, candidates, preferred_element_type=inputs.dtype)


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _draw(key: Array, shape: tuple[int, ...], fan_in: float) -> Array:
    return jax.random.normal(key, shape, jnp.float32) / jnp.sqrt(fan_in)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        check_positive(name, size)


def _check_scored(
    inputs: Array,
    candidates: Array,
    *,
    same_width: bool = False,
    input_size: int | None = None,
    candidate_size: int | None = None,
) -> None:
    shapes = f"inputs {jnp.shape(inputs)} and candidates {jnp.shape(candidates)}"
    if jnp.ndim(inputs) != 2 or jnp.ndim(candidates) not in (2, 3):
        raise ValueError(f"expected inputs [batch, dim] and candidates [n, dim] or [batch, n, dim]: got {shapes}")
    if jnp.ndim(candidates) == 3 and candidates.shape[0] != inputs.shape[0]:
        raise ValueError(f"candidates of each input need one row per input: got {shapes}")
    if same_width and inputs.shape[1] != candidates.shape[-1]:
        raise ValueError(f"inputs and candidates must have one width: got {shapes}")
    for name, size, array in (("inputs", input_size, inputs), ("candidates", candidate_size, candidates)):
        if size is not None and array.shape[-1] != size:
            raise ValueError(f"the weights are for {name} of width {size}: got {shapes}")
