"""Attribution methods by name, each from a score of token embeddings to one number per token.

    scores = token_scores("kernel_shap", score, embeddings, mask, key=jax.random.key(0), baseline=pad_embedding)

One table, `TOKEN_METHODS`, serves whoever takes methods by name: commands and comparisons of methods. Under `jax.jit`
use a method's two halves: `compute` is traced, `finish` (only attention flow has one) runs on the host.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxcore.attribution.ablation import feature_ablation
from jaxcore.attribution.attention import (
    attention_rollout,
    attention_weights,
    gradient_x_attention,
    positive_gradient_x_attention,
    raw_attention,
)
from jaxcore.attribution.attention_flow import attention_flow
from jaxcore.attribution.combinators import noise_variance, smoothed
from jaxcore.attribution.deeplift import deep_lift, deep_shap
from jaxcore.attribution.expected_gradients import expected_gradients
from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.gradients import input_x_gradient, saliency
from jaxcore.attribution.input_checks import Baseline, Score, check_positive, check_score, checked_finite
from jaxcore.attribution.integrated_gradients import integrated_gradients
from jaxcore.attribution.lrp import lrp
from jaxcore.attribution.shapley import shapley_sampling
from jaxcore.attribution.surrogates import kernel_shap, lime
from jaxcore.attribution.token_aggregation import l2_norm_over_dims, mean_over_dims, sum_over_dims

NOISE_SHARE = 0.15
"""Noise of SmoothGrad and VarGrad over the range of a text's embeddings; Smilkov et al. 2017 take 0.1 to 0.2."""


class TokenTask(NamedTuple):
    """What a method is given.

    Attributes:
        score: maps embeddings to [batch].
        embeddings: what is attributed to.
        mask: True at tokens.
        baseline: what a token is replaced by, broadcast against one text's [time, dim] or the whole batch.
        baselines: for methods that average over several, [baselines, time, dim].
        key: of random methods.
        num_steps: points on a path; None = the method's own number.
        num_samples: draws, evaluations or permutations; None = the method's own number.
        chunk_size, memory_budget: see `jaxcore.attribution.chunking`.
    """

    score: Score
    embeddings: Float[Array, "batch time dim"]
    mask: Bool[Array, "batch time"]
    baseline: Baseline
    baselines: Float[Array, "baselines time dim"]
    key: Key[Array, ""]
    num_steps: int | None = None
    num_samples: int | None = None
    chunk_size: int | None = None
    memory_budget: int | None = None

    @property
    def chunks(self) -> dict[str, Any]:
        return {"chunk_size": self.chunk_size, "memory_budget": self.memory_budget}

    def steps(self, default: int) -> dict[str, Any]:
        return {"num_steps": self.num_steps or default, **self.chunks}

    def samples(self, default: int, name: str = "num_samples") -> dict[str, Any]:
        return {name: self.num_samples or default, **self.chunks}


@dataclasses.dataclass(frozen=True)
class TokenMethod:
    """A method by its name.

    Attributes:
        description: one line.
        compute: task -> token scores [batch, time], or what `finish` makes them of.
        is_signed: whether scores speak for and against; otherwise they are magnitudes.
        total: what an example's scores sum to, exactly or as far as the method is exact: the score's "change" from the
            baseline, its "mean_change" from the baselines, the "score" itself; None: nothing in particular.
        is_random: whether the key has a part in the scores.
        finish: the host's half: (compute's result, mask) -> token scores.
    """

    description: str
    compute: Callable[[TokenTask], Array]
    is_signed: bool = True
    total: Literal["change", "mean_change", "score"] | None = None
    is_random: bool = False
    finish: Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "batch time"]] | None = None


def token_scores(
    name: str,
    score: Score,
    embeddings: Float[Array, "batch time dim"],
    mask: Bool[Array, "batch time"] | Int[Array, "batch time"],
    *,
    key: Key[Array, ""],
    baseline: Baseline = 0.0,
    baselines: Float[Array, "baselines time dim"] | None = None,
    num_steps: int | None = None,
    num_samples: int | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch time"]:
    """Token scores by the method of this name; 0 at padding.

    Args:
        name: see `TOKEN_METHODS`.
        score: maps embeddings to [batch]; for attention methods its program must name its attention weights.
        mask: nonzero at tokens.
        baseline, baselines, num_steps, num_samples, chunk_size, memory_budget: see `TokenTask`; without `baselines`
            the one baseline stands for them.

    Raises:
        ValueError: an unknown name (the message has the nearest), and as the method.
    """
    method = find_method(name)
    task = token_task(
        score, embeddings, mask, key, baseline, baselines, num_steps=num_steps, num_samples=num_samples,
        chunk_size=chunk_size, memory_budget=memory_budget,
    )  # fmt: skip
    result = method.compute(task)
    if method.finish is None:
        return result
    return jnp.asarray(method.finish(np.asarray(result), np.asarray(task.mask)), result.dtype)


def token_task(
    score: Score,
    embeddings: Float[Array, "batch time dim"],
    mask: Array,
    key: Key[Array, ""],
    baseline: Baseline,
    baselines: Array | None = None,
    **counts: int | None,
) -> TokenTask:
    """The checked task; ValueError for embeddings, mask, score or counts that no method could use."""
    check_score(score, embeddings)
    check_positive(**counts)
    if embeddings.ndim != 3 or jnp.shape(mask) != embeddings.shape[:2]:
        raise ValueError(
            f"embeddings must be [batch, time, dim] and the mask [batch, time]: got {list(embeddings.shape)} and "
            f"{list(jnp.shape(mask))}"
        )
    example = embeddings.shape[1:]
    if baselines is None:
        if jnp.ndim(baseline) == 3 and jnp.shape(baseline)[0] > 1:
            raise ValueError("a baseline per text cannot stand for `baselines` [baselines, time, dim]: give them too")
        one = jnp.asarray(baseline, embeddings.dtype)
        baselines = one if one.ndim == 3 else one[None]
    baselines = jnp.broadcast_to(baselines, (jnp.shape(baselines)[0] if jnp.ndim(baselines) else 1, *example))
    # Jitted: traced once, however often a method evaluates it, which is most of the time until a program runs.
    return TokenTask(jax.jit(score), embeddings, jnp.asarray(mask) != 0, baseline, baselines, key, **counts)


def expected_total(method: TokenMethod, task: TokenTask) -> Float[Array, " batch"] | None:
    """What an example's token scores would sum to if the method were exact (see `TokenMethod.total`), or None."""
    if method.total is None:
        return None
    whole = task.score(task.embeddings)
    if method.total == "score":
        return whole
    if method.total == "change":
        return whole - task.score(jnp.broadcast_to(task.baseline, task.embeddings.shape).astype(task.embeddings.dtype))
    without = jax.lax.map(lambda b: task.score(jnp.broadcast_to(b, task.embeddings.shape)), task.baselines)
    return whole - jnp.mean(without, axis=0)


def find_method(name: str) -> TokenMethod:
    """The method of this name or alias; ValueError with the nearest names if there is none."""
    return TOKEN_METHODS[method_name(name)]


def method_name(name: str, table: Iterable[str] | None = None) -> str:
    """The name of a name or alias in the table (`TOKEN_METHODS`); ValueError with the nearest names for none."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    names = list(TOKEN_METHODS if table is None else table)
    known = {**{key: key for key in names}, **ALIASES}
    if plain in known:
        return known[plain]
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(names)}"
    raise ValueError(f"unknown attribution method {name!r}: {meant}")


def method_table() -> list[tuple[str, str]]:
    """Name and description of every method, aliases mentioned."""
    also = {name: [alias for alias, of in ALIASES.items() if of == name] for name in TOKEN_METHODS}
    return [
        (name, method.description + (f" (also: {', '.join(also[name])})" if also[name] else ""))
        for name, method in TOKEN_METHODS.items()
    ]


def noise_scale(task: TokenTask) -> Float[Array, "batch 1 1"]:
    """Standard deviation of SmoothGrad's and VarGrad's noise: a share of the range of a text's embeddings."""
    inside = task.mask[:, :, None]
    highest = jnp.max(task.embeddings, axis=(1, 2), keepdims=True, where=inside, initial=-jnp.inf)
    lowest = jnp.min(task.embeddings, axis=(1, 2), keepdims=True, where=inside, initial=jnp.inf)
    return NOISE_SHARE * jnp.maximum(highest - lowest, 0)


def _smoothed(combinator: Callable[..., Any], task: TokenTask) -> Array:
    method = combinator(saliency, noise_scale=noise_scale(task), **task.samples(25))
    return method(task.score, task.embeddings, task.key)


def _perturbed(method: Callable[..., Array], task: TokenTask, *key: Array, **options: Any) -> Array:
    """A method that replaces whole tokens: one feature per token, whose value all its coordinates carry."""
    groups = token_groups(task.mask)
    values = method(task.score, task.embeddings, *key, baseline=task.baseline, groups=groups, **options)
    return mean_over_dims(values)


def _weights(task: TokenTask) -> Float[Array, "batch layers heads time source"]:
    return attention_weights(task.score)(task.embeddings)


def _by_source(weights: Float[Array, "batch layers heads time source"], mask: Array) -> Float[Array, "batch source"]:
    """The sum over layers, heads and tokens that attend (padding does not)."""
    return jnp.sum(jnp.where(mask[:, None, None, :, None], weights, 0), axis=(1, 2, 3))


def _masked(compute: Callable[[TokenTask], Array], name: str) -> Callable[[TokenTask], Array]:
    def scores(task: TokenTask) -> Array:
        return checked_finite(jnp.where(task.mask, compute(task), 0), name)

    return scores


def _table(**methods: TokenMethod) -> dict[str, TokenMethod]:
    return {
        name: method if method.finish else dataclasses.replace(method, compute=_masked(method.compute, name))
        for name, method in methods.items()
    }


TOKEN_METHODS: dict[str, TokenMethod] = _table(
    saliency=TokenMethod(
        "length of the score's gradient at a token's embedding",
        lambda t: l2_norm_over_dims(saliency(t.score, t.embeddings)),
        is_signed=False,
    ),
    input_x_gradient=TokenMethod(
        "gradient times (embedding - baseline): the score's change to first order",
        lambda t: sum_over_dims(input_x_gradient(t.score, t.embeddings, baseline=t.baseline)),
        total="change",
    ),
    smoothgrad=TokenMethod(
        "length of the gradient's mean over Gaussian noise on the embeddings",
        lambda t: l2_norm_over_dims(_smoothed(smoothed, t)),
        is_signed=False,
        is_random=True,
    ),
    vargrad=TokenMethod(
        "variance of the gradient over Gaussian noise on the embeddings",
        lambda t: sum_over_dims(_smoothed(noise_variance, t)),
        is_signed=False,
        is_random=True,
    ),
    integrated_gradients=TokenMethod(
        "gradients summed along the straight line from the baseline; adds up to the score's change",
        lambda t: sum_over_dims(integrated_gradients(t.score, t.embeddings, baseline=t.baseline, **t.steps(50))),
        total="change",
    ),
    expected_gradients=TokenMethod(
        "integrated gradients averaged over several baselines, by sampling",
        lambda t: sum_over_dims(
            expected_gradients(t.score, t.embeddings, t.key, baselines=t.baselines, **t.samples(100))
        ),
        total="mean_change",
        is_random=True,
    ),
    deeplift=TokenMethod(
        "the score's change from the baseline, passed back through the layers by secants (rescale rule)",
        lambda t: sum_over_dims(deep_lift(t.score, t.embeddings, baseline=t.baseline)),
        total="change",
    ),
    deepshap=TokenMethod(
        "DeepLIFT averaged over several baselines",
        lambda t: sum_over_dims(deep_shap(t.score, t.embeddings, baselines=t.baselines, **t.chunks)),
        total="mean_change",
    ),
    attnlrp=TokenMethod(
        "layer-wise relevance propagation with the transformer rules of AttnLRP",
        lambda t: sum_over_dims(lrp(t.score, t.embeddings)),
        total="score",
    ),
    cp_lrp=TokenMethod(
        "layer-wise relevance propagation with attention weights held constant",
        lambda t: sum_over_dims(lrp(t.score, t.embeddings, softmax="constant")),
        total="score",
    ),
    occlusion=TokenMethod(
        "how much the score falls when the token is replaced by the baseline",
        lambda t: _perturbed(feature_ablation, t, **t.chunks),
    ),
    lime=TokenMethod(
        "coefficients of a local linear model of which tokens are present",
        lambda t: _perturbed(lime, t, t.key, **t.samples(1000)),
        is_random=True,
    ),
    kernel_shap=TokenMethod(
        "Shapley values as a regression over sets of tokens",
        lambda t: _perturbed(kernel_shap, t, t.key, **t.samples(1000)),
        total="change",
        is_random=True,
    ),
    shapley_sampling=TokenMethod(
        "Shapley values as mean contributions over random orders of the tokens",
        lambda t: _perturbed(shapley_sampling, t, t.key, **t.samples(25, "num_permutations")),
        total="change",
        is_random=True,
    ),
    attention=TokenMethod(
        "what the first token attends to in the last layer, mean over heads",
        lambda t: raw_attention(_weights(t)),
        is_signed=False,
    ),
    attention_rollout=TokenMethod(
        "what the first token attends to, followed through all layers and residual connections",
        lambda t: attention_rollout(_weights(t)),
        is_signed=False,
    ),
    attention_flow=TokenMethod(
        "maximum flow of attention from the first token through all layers (on the host; for short texts)",
        _weights,
        is_signed=False,
        finish=attention_flow,
    ),
    gradient_x_attention=TokenMethod(
        "attention weights times the score's gradient, summed over layers, heads and queries",
        lambda t: _by_source(gradient_x_attention(t.score, t.embeddings), t.mask),
    ),
    grad_sam=TokenMethod(
        "the same with positive gradients only",
        lambda t: _by_source(positive_gradient_x_attention(t.score, t.embeddings), t.mask),
        is_signed=False,
    ),
)
"""The methods, in the order of listings."""

ALIASES = {
    "ig": "integrated_gradients",
    "lrp": "attnlrp",
    "deep_lift": "deeplift",
    "deep_shap": "deepshap",
    "gradient_shap": "expected_gradients",
    "feature_ablation": "occlusion",
    "raw_attention": "attention",
    "rollout": "attention_rollout",
}


def method_names(names: Sequence[str], table: Iterable[str] | None = None) -> tuple[str, ...]:
    """The table's names of these names and aliases, without repetition; ValueError as `method_name`, or for none."""
    found = tuple(dict.fromkeys(method_name(name, table) for name in names if name.strip()))
    if not found:
        raise ValueError(f"no attribution method given: expected one or more of {', '.join(TOKEN_METHODS)}")
    return found
