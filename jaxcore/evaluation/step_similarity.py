"""Which sentences of resampled reasoning say what a trace says: cosines of their embeddings."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

Embed = Callable[[Sequence[str]], Float[np.ndarray, "texts dim"]]
"""Texts -> vectors of unit length: `jaxcore.evaluation.text_embedding.embed_texts` of a sentence encoder, or
`jaxcore.data.hashed_word_counts`."""


def first_step_similarities(
    embed: Embed, own: Sequence[str], drawn: Sequence[Sequence[str]]
) -> Float[np.ndarray, "positions samples"]:
    """Cosine of each sentence drawn at position i with the trace's own sentence i.

    Args:
        own: the trace's sentences.
        drawn: for each of the first positions its N drawn sentences; "" for a rollout that wrote none (cosine 0).

    Raises:
        ValueError: more positions than sentences, positions with unequal numbers of samples.
    """
    if len(drawn) > len(own) or len({len(samples) for samples in drawn}) > 1:
        sizes = sorted({len(samples) for samples in drawn})
        raise ValueError(f"{len(drawn)} positions of {sizes} samples do not fit {len(own)} sentences")
    vectors = _Vectors(embed, [*own, *(text for samples in drawn for text in samples)])
    return np.stack([vectors[samples] @ vectors[[own[i]]][0] for i, samples in enumerate(drawn)])


def best_step_similarities(
    embed: Embed, own: Sequence[str], rollouts: Sequence[Sequence[Sequence[str]]]
) -> Float[np.ndarray, "positions samples targets"]:
    """For each rollout the largest cosine of one of its sentences with each of the trace's; -1 without sentences.

    Args:
        own: the trace's M sentences.
        rollouts: by position and sample, the sentences of the continuation.
    """
    vectors = _Vectors(embed, [*own, *(text for position in rollouts for sample in position for text in sample)])
    targets = vectors[own]

    def best(sample: Sequence[str]) -> np.ndarray:
        return (vectors[sample] @ targets.T).max(0) if len(sample) else np.full(len(own), -1.0)

    return np.stack([np.stack([best(sample) for sample in position]) for position in rollouts])


class _Vectors:
    """Vectors of distinct texts, each embedded once; the empty text is zero."""

    def __init__(self, embed: Embed, texts: Sequence[str]) -> None:
        distinct = [text for text in dict.fromkeys(texts) if text]
        found = np.asarray(embed(distinct), np.float64)
        self._rows = {text: row for row, text in enumerate(distinct)} | {"": len(distinct)}
        self._vectors = np.concatenate([found, np.zeros((1, found.shape[1]))])

    def __getitem__(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        return self._vectors[[self._rows[text] for text in texts]]
