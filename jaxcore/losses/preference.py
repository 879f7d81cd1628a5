"""Preference objectives: of two responses to a prompt, the chosen one should be the likelier.

Both take log probabilities of whole responses, sums over their tokens:

    found = next_token_log_probs(logits, input_ids, mask, target_mask=response_mask)
    log_prob = found.sums()                                # [pairs]; found.means() counts long responses per token
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcore.losses.input_checks import check_positive
from jaxcore.losses.ranking import pairwise_ranking

LogProbs = Float[Array, " pairs"]


def direct_preference_loss(
    chosen: LogProbs,
    rejected: LogProbs,
    reference_chosen: LogProbs,
    reference_rejected: LogProbs,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Direct preference optimisation: the policy's log-ratio to a reference is the reward that preferences are of.

        r(y) = beta (log pi(y | x) - log pi_ref(y | x))
        L = - mean [ (1 - e) log sigma(r(y+) - r(y-)) + e log sigma(r(y-) - r(y+)) ]

    Args:
        chosen, rejected: [pairs] log pi of the two responses, in nats.
        reference_chosen, reference_rejected: [pairs] those of the reference; give them without gradient.
        beta: above 0; how dear it is to leave the reference.
        label_smoothing: e in [0, 0.5), the share of pairs thought to be labelled the wrong way round.

    Raises:
        ValueError: shapes that differ, beta not above 0, label_smoothing outside [0, 0.5).

    Source: Rafailov et al. 2023 (DPO), eq. 7; Mitchell 2023 (conservative DPO).
    """
    others = {"rejected": rejected, "reference_chosen": reference_chosen, "reference_rejected": reference_rejected}
    for name, values in others.items():
        if jnp.shape(values) != jnp.shape(chosen):
            raise ValueError(f"{name} must have the shape of chosen {jnp.shape(chosen)}: got {jnp.shape(values)}")
    return log_ratio_preference_loss(
        chosen - reference_chosen, rejected - reference_rejected, beta=beta, label_smoothing=label_smoothing
    )


def log_ratio_preference_loss(
    chosen: LogProbs, rejected: LogProbs, *, beta: float = 1.0, label_smoothing: float = 0.0
) -> Float[Array, ""]:
    """The same without a reference: Bradley-Terry with the log probabilities themselves as rewards.

        L = - mean [ (1 - e) log sigma(b (log pi(y+) - log pi(y-))) + e log sigma(b (log pi(y-) - log pi(y+))) ]

    Sums favour short responses; means per token (length-normalised, as in SimPO) do not.

    Args:
        chosen, rejected: [pairs] log pi of the two responses, in nats.
        beta: b, above 0.
        label_smoothing: e in [0, 0.5).

    Raises:
        ValueError: shapes that differ, beta not above 0, label_smoothing outside [0, 0.5).

    Source: Bradley and Terry 1952; Meng et al. 2024 (SimPO), eq. 3-5, without its margin.
    """
    check_positive("beta", beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5): got {label_smoothing}")
    loss = pairwise_ranking(beta * chosen, beta * rejected)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * pairwise_ranking(beta * rejected, beta * chosen)
    return loss
