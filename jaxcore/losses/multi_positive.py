"""InfoNCE with several positives per anchor: the first view against each of the others."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxcore.losses.info_nce import Temperature, info_nce_rows
from jaxcore.losses.pairs import Exchange


def multi_positive_info_nce(
    views: Float[Array, "views batch dim"],
    *,
    temperature: Temperature,
    combine: Literal["sum", "logsum"] = "sum",
    weights: Sequence[float] | None = None,
    normalize: bool = True,
    mesh: Mesh | None = None,
    exchange: Exchange | None = None,
) -> Float[Array, ""]:
    """The first view of each item is its anchor, every other view one positive with a softmax of its own.

        p_v(i) = exp(s(h_1i, h_vi) / tau) / sum_j exp(s(h_1i, h_vj) / tau)
        sum:     L = -(1/B) sum_i sum_{v=2..V} w_v log p_v(i)
        logsum:  L = -(1/B) sum_i log sum_{v=2..V} w_v p_v(i)

    Under "sum" every positive must be found, and with weights 1 the loss is the sum of V - 1 `info_nce` losses; under
    "logsum" one found positive is enough. Anchors are no negatives of each other.

    Args:
        views: [views, batch, dim], V >= 2; item i stands in row i of each view.
        temperature: tau > 0; may be a learnt scalar.
        combine: see above.
        weights: V - 1 positive numbers, one per positive; 1 unless given. (The source tries "logsum" with 1 and 0.8.)
        normalize, mesh, exchange: as for `jaxcore.losses.info_nce`.

    Raises:
        ValueError: not [views, batch, dim] with two views or more, weights of another number or not positive, an
            unknown `combine`, and as for `jaxcore.losses.info_nce`.

    Source: Zhuo et al. 2023 (WhitenedCSE); github.com/SupstarZh/WhitenedCSE (behaviour of both forms).
    """
    if combine not in ("sum", "logsum"):
        raise ValueError(f"combine must be 'sum' or 'logsum': got {combine!r}")
    if views.ndim != 3 or views.shape[0] < 2:
        raise ValueError(f"views must be [views, batch, dim], an anchor and one or more positives: got {views.shape}")
    num_positives = views.shape[0] - 1
    weights = (1.0,) * num_positives if weights is None else tuple(float(w) for w in weights)
    if len(weights) != num_positives or not all(0 < w < float("inf") for w in weights):
        raise ValueError(f"weights must be {num_positives} positive numbers, one per positive view: got {weights}")
    losses = jnp.stack(
        [
            info_nce_rows(
                views[0], positives, temperature=temperature, normalize=normalize, mesh=mesh, exchange=exchange
            )
            for positives in views[1:]
        ]
    )
    of_positives = jnp.asarray(weights, losses.dtype)[:, None]
    if combine == "sum":
        return jnp.mean(jnp.sum(of_positives * losses, axis=0))
    return -jnp.mean(jax.nn.logsumexp(-losses, axis=0, b=of_positives))
