"""SimCTG's contrast between the tokens of one text: their vectors should not all look alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxcore.losses.similarity import unit_vectors


def token_margin_contrast(
    hidden: Float[Array, "batch time dim"], mask: Bool[Array, "batch time"] | None = None, *, margin: float = 0.5
) -> Float[Array, ""]:
    """Token vectors of a text pushed apart until their cosine is below 1 - margin.

        L = sum_b sum_{i != j, both real} max(0, rho - 1 + cos(h_i, h_j)) / sum_b T_b (T_b - 1)

    Pairs are pooled over the batch, so long texts weigh more. Texts of fewer than two tokens have no pair; a batch
    without any has loss 0. Takes B T^2 numbers.

    Args:
        hidden: [B, T, D] last-layer states; normalised here. A zero vector has cosine 0 with every other.
        mask: [B, T], False on padding.
        margin: rho >= 0; 0.5 in the source.

    Raises:
        ValueError: shapes that do not fit, a negative margin.

    Source: Su et al. 2022 (SimCTG), eq. 2; pooling over pairs as in its code, github.com/yxuansu/SimCTG.
    """
    if jnp.ndim(hidden) != 3 or (mask is not None and jnp.shape(mask) != hidden.shape[:2]):
        raise ValueError(
            "expected hidden [batch, time, dim] and mask [batch, time]: got "
            f"{jnp.shape(hidden)} and {None if mask is None else jnp.shape(mask)}"
        )
    if margin < 0:
        raise ValueError(f"margin must be >= 0: got {margin}")
    real = jnp.ones(hidden.shape[:2], bool) if mask is None else mask.astype(bool)

    def of_text(vectors: Float[Array, "time dim"], real: Bool[Array, " time"]) -> tuple[Array, Array]:
        units = unit_vectors(vectors)
        pairs = real[:, None] & real[None, :] & ~jnp.eye(real.shape[0], dtype=bool)
        return jnp.sum(jnp.maximum(margin - 1 + units @ units.T, 0), where=pairs), jnp.sum(pairs)

    hinges, pairs = jax.vmap(of_text)(hidden, real)
    return jnp.sum(hinges) / jnp.maximum(jnp.sum(pairs), 1)
