"""One loss out of several: with fixed weights, or with weights that are learned."""

from collections.abc import Iterable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

Terms = Mapping[str, Float[Array, ""]]


def fixed_mixture(terms: Terms, weights: Mapping[str, float]) -> Float[Array, ""]:
    """``L = sum_i w_i L_i``.

    Args:
        terms: scalar losses by name.
        weights: w_i by the same names.

    Raises:
        ValueError: names that do not match, a term that is not a scalar.
    """
    _check_names(terms, weights, "weights")
    return sum((weights[name] * _wide(term) for name, term in terms.items()), jnp.zeros(()))


def init_log_variances(names: Iterable[str]) -> dict[str, Float[Array, ""]]:
    """Parameters of `learned_mixture`, all 0: every term starts with weight 1."""
    return {name: jnp.zeros(()) for name in names}


def learned_mixture(terms: Terms, log_variances: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
    """Weights that the model learns as the uncertainty of each term.

        L = sum_i exp(-v_i) L_i + max(v_i, 0)

    A term that stays at the value l drives its v to ``max(log l, 0)``, weight ``1 / max(l, 1)``: small terms keep their
    weight, large ones are brought down to the others.

    Args:
        terms: scalar losses by name.
        log_variances: v_i by the same names, of `init_log_variances`.

    Raises:
        ValueError: names that do not match, a term that is not a scalar.

    Source: Wang et al. 2021 (CLINE), github.com/kandorm/CLINE; after Kendall et al. 2018.
    """
    _check_names(terms, log_variances, "log_variances")
    total = jnp.zeros(())
    for name, term in terms.items():
        log_variance = log_variances[name]
        total += jnp.exp(-log_variance) * _wide(term) + jnp.maximum(log_variance, 0)
    return total


def _check_names(terms: Terms, others: Mapping[str, object], what: str) -> None:
    if not terms or set(terms) != set(others):
        raise ValueError(f"terms and {what} must have the same names, at least one: got {list(terms)}, {list(others)}")
    for name, term in terms.items():
        if jnp.shape(term) != ():
            raise ValueError(f"the term {name!r} must be a scalar: got shape {jnp.shape(term)}")


def _wide(term: Array) -> Array:
    return jnp.asarray(term, jnp.promote_types(jnp.result_type(term), jnp.float32))
