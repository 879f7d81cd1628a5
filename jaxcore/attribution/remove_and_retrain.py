"""Remove and retrain (ROAR): what a model can still learn when the tokens an explanation ranks highest are gone.

Retraining answers an objection to deletion without it: that the score falls because texts with holes are unlike any the
model saw. Here the new model sees only such texts; a faithful ranking makes its accuracy fall faster than a random one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxcore.attribution.faithfulness import (
    PerToken,
    check_scored_tokens,
    num_tokens,
    ranked_tokens,
    replace_top_tokens,
)
from jaxcore.attribution.input_checks import Baseline, broadcast_baseline

Retrain: TypeAlias = Callable[[Any, Any], float]
"""(training inputs, test inputs) -> test accuracy of a model trained anew; it knows labels, masks and seeds."""


class RankedTexts(NamedTuple):
    """A data set with an explanation of each text: inputs [texts, time, ...] (embeddings or token ids), token scores
    [texts, time], and the mask [texts, time] of real tokens (None: all). For pairs of texts, pytrees of such arrays,
    see `jaxcore.attribution.faithfulness`."""

    inputs: Any
    token_scores: PerToken
    mask: PerToken | None = None


class RetrainedAccuracy(NamedTuple):
    """Accuracy after retraining without each share of tokens: [fractions] both."""

    fractions: Float[np.ndarray, " fractions"]
    accuracy: Float[np.ndarray, " fractions"]


def remove_and_retrain(
    retrain: Retrain,
    train: RankedTexts,
    test: RankedTexts,
    *,
    baseline: Baseline = 0.0,
    fractions: Sequence[float] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
) -> RetrainedAccuracy:
    """Test accuracy of models trained and tested on texts without their highest-ranked tokens.

    Args:
        retrain: trains a model from new on the given inputs and returns its accuracy; called once per fraction, in
            order. For a mean over seeds, repeat with another seed inside.
        train, test: the data with the explanations of one model trained on all of it. The control is the same call
            with random token scores.
        baseline: what replaces a token, broadcast against the inputs: a vector, or the mask token's id.
        fractions: shares of each text's tokens to remove, rounded to whole tokens.

    Raises:
        ValueError: before any training: inputs, scores or masks whose texts and tokens differ, a text without tokens, a
            baseline that does not broadcast against the inputs, fractions outside [0, 1].

    Source: Hooker et al. 2019 (ROAR).
    """
    datasets = list(datasets_without_top_tokens(train, test, baseline=baseline, fractions=fractions))
    accuracy = [float(retrain(*pair)) for pair in datasets]
    return RetrainedAccuracy(np.asarray(fractions, np.float64), np.asarray(accuracy, np.float64))


def datasets_without_top_tokens(
    *datasets: RankedTexts, baseline: Baseline = 0.0, fractions: Sequence[float]
) -> Iterator[tuple[Any, ...]]:
    """For each fraction the inputs of every data set with that share of their highest-ranked tokens replaced.

    Args, errors (raised when called): as in `remove_and_retrain`.
    """
    shares = np.asarray(fractions, np.float64)
    if not shares.size or not np.all((shares >= 0) & (shares <= 1)):
        raise ValueError(f"fractions must be one or more shares in [0, 1]: got {list(fractions)}")
    ranked = [ranked_tokens(texts.token_scores, texts.mask)[0] for texts in datasets]
    for texts, order in zip(datasets, ranked, strict=True):
        check_scored_tokens(texts.inputs, order)
        jax.eval_shape(lambda inputs: broadcast_baseline(baseline, inputs), texts.inputs)  # its check, and no array

    def without(share: float) -> tuple[Any, ...]:
        return tuple(_without(texts, order, share, baseline) for texts, order in zip(datasets, ranked, strict=True))

    return map(without, shares.tolist())


def _without(texts: RankedTexts, order: PerToken, share: float, baseline: Baseline) -> Any:
    counts = jnp.round(share * num_tokens(order)).astype(jnp.int32)
    return replace_top_tokens(jax.tree.map(jnp.asarray, texts.inputs), order, counts, baseline=baseline)
