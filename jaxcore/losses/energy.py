"""Energy-based training of a residual on top of a language model."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def residual_energy_loss(real: Float[Array, " n"], fake: Float[Array, " m"]) -> Float[Array, ""]:
    """Noise-contrastive training of ``p(x) proportional to p_LM(x) exp(-E(x))`` against samples of p_LM.

        L = E_real [ -log sigma(-E) ] + E_fake [ -log sigma(E) ]

    The noise is the language model itself, so its probability cancels in the corrected score and plain binary
    cross-entropy on the energy alone is already right. Both means weigh the same, whatever n and m; the optimum is
    ``E(x) = log p_LM(x) - log p_data(x)``: low for what is real.

    Args:
        real: [n] energies of texts from the data.
        fake: [m] energies of texts sampled from the language model.

    Raises:
        ValueError: not two non-empty vectors.

    Source: Deng et al. 2020, eq. 4.
    """
    if jnp.ndim(real) != 1 or jnp.ndim(fake) != 1 or 0 in (*real.shape, *fake.shape):
        raise ValueError(
            f"energies of real and fake texts must be non-empty vectors: got {jnp.shape(real)} and {jnp.shape(fake)}"
        )
    real, fake = (energies.astype(jnp.promote_types(energies.dtype, jnp.float32)) for energies in (real, fake))
    return jnp.mean(jax.nn.softplus(real)) + jnp.mean(jax.nn.softplus(-fake))
