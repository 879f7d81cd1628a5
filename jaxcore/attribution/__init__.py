"""Explanation methods: ``method(score, inputs, *, baseline=..., ...) -> attributions`` of the inputs' shape.

A score maps a batch of inputs to one number per example, so anything can be explained: a logit, a similarity to a
set of documents, or a contrast ("this author rather than the runner-up": subtract the two scores). Expansions
(steps, samples, masks) run in chunks that fit a memory budget: `jaxcore.attribution.chunking`.

| method | function |
|---|---|
| integrated gradients and its completeness error | `integrated_gradients`, `completeness_error` |
| tokens behind a text's similarity to a target, or to one target rather than another | `attribute_similarity` |
"""

from jaxcore.attribution.embedding_similarity import TokenAttributions, attribute_similarity
from jaxcore.attribution.input_checks import Score
from jaxcore.attribution.integrated_gradients import (
    completeness_error,
    integrated_gradients,
    quadrature_rule,
)

__all__ = [
    "Score",
    "TokenAttributions",
    "attribute_similarity",
    "completeness_error",
    "integrated_gradients",
    "quadrature_rule",
]
