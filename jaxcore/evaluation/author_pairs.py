"""Pairs of texts for authorship verification: same author or not, across topics or works."""

import numpy as np
from jaxtyping import Bool, Int


def sample_author_pairs(
    authors: Int[np.ndarray, "n"],
    is_query: Bool[np.ndarray, "n"],
    *,
    num_pairs: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, "pairs"], Int[np.ndarray, "pairs"], Bool[np.ndarray, "pairs"]]:
    """`num_pairs` pairs (support text, query text), half of them by one author, in random order.

    Drawing one side from support and the other from query texts keeps topic or work apart in positive pairs, so that
    sharing a topic is no evidence.

    Args:
        authors: [n] author of each text.
        is_query: [n] which side of a pair the text may stand on.

    Returns:
        left, right: [pairs] text numbers; same: [pairs] whether one author wrote both.

    Raises:
        ValueError: fewer than two authors with texts on both sides.
    """
    names = np.unique(authors)
    support = [np.flatnonzero((authors == name) & ~is_query) for name in names]
    query = [np.flatnonzero((authors == name) & is_query) for name in names]
    usable = [i for i in range(len(names)) if len(support[i]) and len(query[i])]
    if len(usable) < 2:
        raise ValueError(f"pairs need two authors with support and query texts: there are {len(usable)}")
    same = np.arange(num_pairs) % 2 == 0
    first = rng.choice(usable, num_pairs)
    position = {name: i for i, name in enumerate(usable)}
    shift = rng.integers(1, len(usable), num_pairs)
    others = np.array([usable[(position[a] + s) % len(usable)] for a, s in zip(first, shift, strict=True)])
    second = np.where(same, first, others)
    left = np.array([rng.choice(support[a]) for a in first])
    right = np.array([rng.choice(query[a]) for a in second])
    order = rng.permutation(num_pairs)
    return left[order], right[order], same[order]
