"""Detecting replaced tokens: ELECTRA's discriminator, and Electric, its noise-corrected relative.

Both read a text some of whose tokens a generator replaced, and ask of every token whether it is data or noise. They
differ in two places that belong together: what counts as noise when the generator happens to sample the original, and
whether the generator's probability enters the logit.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def replaced_token_targets(
    original: Int[Array, "batch time"],
    sampled: Int[Array, "batch time"],
    masked: Bool[Array, "batch time"],
    *,
    rule: Literal["electra", "electric"],
) -> Int[Array, "batch time"]:
    """1 where a token is noise, 0 where it is data.

    "electra": noise is what differs from the original; a sample equal to it counts as original. "electric": noise is
    whatever the generator put there, because the objective contrasts two *distributions*, and the noise distribution
    gives the original's token its probability too.

    Args:
        original: [B, T] the text's tokens.
        sampled: [B, T] the tokens after replacement; read only where `masked`.
        masked: [B, T] positions at which the generator was asked.
        rule: which objective the targets are for.

    Raises:
        ValueError: shapes that differ, an unknown rule.

    Source: Clark et al. 2020a (ELECTRA), section 2; Clark et al. 2020b (Electric), section 3.
    """
    _check_same(original=original, sampled=sampled, masked=masked)
    if rule not in ("electra", "electric"):
        raise ValueError(f'rule must be "electra" or "electric": got {rule!r}')
    masked = masked.astype(bool)
    noise = masked & (sampled != original) if rule == "electra" else masked
    return noise.astype(jnp.int32)


def replaced_token_loss(
    logits: Float[Array, "batch time"],
    targets: Int[Array, "batch time"],
    *,
    mask: Bool[Array, "batch time"] | None = None,
) -> Float[Array, ""]:
    """Mean binary cross-entropy over real tokens; a positive logit says "noise".

        L = (1/N) sum_t [ y_t log(1 + e^-z_t) + (1 - y_t) log(1 + e^z_t) ]

    Args:
        logits: [B, T]; for Electric, of `electric_logits`.
        targets: [B, T], of `replaced_token_targets`.
        mask: [B, T], False on padding; N counts the others, and the loss is 0 where there are none.

    Raises:
        ValueError: shapes that differ.

    Source: Clark et al. 2020a, section 2; binary NCE token by token.
    """
    _check_same(logits=logits, targets=targets, **({} if mask is None else {"mask": mask}))
    mask = jnp.ones(logits.shape, bool) if mask is None else mask.astype(bool)
    wide = jnp.where(mask, logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), 0)
    losses = jax.nn.softplus(jnp.where(targets > 0, -wide, wide))
    return jnp.sum(losses, where=mask) / jnp.maximum(jnp.sum(mask), 1)


def electric_logits(
    energies: Float[Array, "batch time"], log_noise: Float[Array, "batch time"], *, mask_rate: float
) -> Float[Array, "batch time"]:
    """Log-odds of noise against data, from energies and the generator's probabilities.

        z_t = E_t + log q(x_t | context) + log(m / (1 - m)),   p(x_t | context) proportional to exp(-E_t)

    With these logits the optimum is ``-E_t = log p(x_t | context)``, normalised by itself. No gradient flows into q:
    the discriminator's loss must not teach the generator.

    Args:
        energies: [B, T], E_t.
        log_noise: [B, T], log q of the tokens that stand there.
        mask_rate: m in (0, 1), the share of positions that are replaced.

    Raises:
        ValueError: shapes that differ, a rate out of range.

    Source: Clark et al. 2020b (Electric), eq. 2-3; 0.15 in google-research/electra.
    """
    _check_same(energies=energies, log_noise=log_noise)
    if not 0 < mask_rate < 1:
        raise ValueError(f"mask_rate must be in (0, 1): got {mask_rate}")
    wide = energies.astype(jnp.promote_types(energies.dtype, jnp.float32))
    return wide + jax.lax.stop_gradient(log_noise) + (jnp.log(mask_rate) - jnp.log1p(-mask_rate))


def _check_same(**arrays: Array) -> None:
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        shown = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected arrays of one shape [batch, time]: got {shown}")
