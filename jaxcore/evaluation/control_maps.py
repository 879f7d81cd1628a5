"""Negative controls for saliency maps: the same values or as many tokens, without what the explanation says."""

import numpy as np
from jaxtyping import Bool, Float, Int


def permuted_scores(
    scores: Float[np.ndarray, "n length"], mask: Bool[np.ndarray, "n length"], rng: np.random.Generator
) -> Float[np.ndarray, "n length"]:
    """Every map with its values dealt to its tokens at random, 0 elsewhere: nothing of where the values belong.

    Raises:
        ValueError: shapes that differ.
    """
    if np.shape(scores) != np.shape(mask):
        raise ValueError(f"scores and mask must have one shape: got {np.shape(scores)} and {np.shape(mask)}")
    permuted = np.zeros_like(scores)
    for row, values, tokens in zip(permuted, scores, mask, strict=True):
        row[tokens] = rng.permutation(values[tokens])
    return permuted


def random_spans(
    mask: Bool[np.ndarray, "n length"], sizes: Int[np.ndarray, " n"], rng: np.random.Generator
) -> Bool[np.ndarray, "n length"]:
    """In each text a span of `sizes` tokens one after the other, anywhere; all tokens of a text that has no more.

    Raises:
        ValueError: another number of sizes than of texts.
    """
    if np.shape(sizes) != np.shape(mask)[:1]:
        raise ValueError(f"a size is needed for each text: got {np.shape(sizes)} for {np.shape(mask)}")
    spans = np.zeros_like(mask)
    for row, tokens, size in zip(spans, mask, sizes, strict=True):
        places = np.flatnonzero(tokens)
        start = int(rng.integers(max(len(places) - int(size), 0) + 1))
        row[places[start : start + int(size)]] = True
    return spans
