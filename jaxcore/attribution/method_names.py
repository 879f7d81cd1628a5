"""Attribution methods by name, each from a score of token embeddings to one number per token.

    scores = token_scores("kernel_shap", score, embeddings, mask, key=jax.random.key(0), baseline=pad_embedding)

One table, `TOKEN_METHODS`, serves whoever takes methods by name: commands and comparisons of methods. Under `jax.jit`
use a method's two halves: `compute` is traced, `finish` (only attention flow has one) runs on the host.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxcore.attribution.ablation import feature_ablation
from jaxcore.attribution.attention import attention_rollout, gradient_x_attention, positive_gradient_x_attention
from jaxcore.attribution.attention_flow import attention_flow
from jaxcore.attribution.combinators import noise_variance, smoothed
from jaxcore.attribution.deeplift import deep_lift, deep_shap
from jaxcore.attribution.expected_gradients import expected_gradients
from jaxcore.attribution.gradients import input_x_gradient, saliency
from jaxcore.attribution.input_checks import Baseline, Score, checked_finite
from jaxcore.attribution.integrated_gradients import integrated_gradients
from jaxcore.attribution.lrp import AlphaBeta, Gamma, lrp
from jaxcore.attribution.paths import sequential_integrated_gradients
from jaxcore.attribution.rise import rise_over_groups
from jaxcore.attribution.shapley import MAX_EXACT_FEATURES, exact_shapley, shapley_sampling
from jaxcore.attribution.surrogates import kernel_shap, lime
from jaxcore.attribution.token_aggregation import l2_norm_over_dims, sum_over_dims
from jaxcore.attribution.token_reductions import (
    along_words,
    attention_maps,
    by_span,
    by_token,
    conductance,
    guided,
    looked_at,
    over_queries,
    owed_to_values,
    under_noise,
)
from jaxcore.attribution.token_task import TokenTask, token_task

# Activations of both signs bring a layer's raised output close to 0: with the gamma of networks of ReLUs (0.25) or a
# smaller epsilon, relevance grows from layer to layer (to 1e12 in 12 random BERT layers).
_GAMMA = Gamma(gamma=0.05, epsilon=1e-2)


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
        max_tokens: the longest text it takes, special tokens counted; None = any.
        for_sequences: whether tokens that a score does not depend on have no part in the scores of others, so that the
            method serves every target of a sequence (`jaxcore.attribution.sequence_targets`).
        reads_layers: whether it reads or changes named activations inside the model (attention weights, layers), which
            must then be there for all tokens.
    """

    description: str
    compute: Callable[[TokenTask], Array]
    is_signed: bool = True
    total: Literal["change", "mean_change", "score"] | None = None
    is_random: bool = False
    finish: Callable[[np.ndarray, np.ndarray], Float[np.ndarray, "batch time"]] | None = None
    max_tokens: int | None = None
    for_sequences: bool = True
    reads_layers: bool = False


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
    vocabulary: Float[Array, "words dim"] | None = None,
) -> Float[Array, "batch time"]:
    """Token scores by the method of this name; 0 at padding.

    Args:
        name: see `TOKEN_METHODS`.
        score: maps embeddings to [batch]; for attention methods its program must name its attention weights.
        mask: nonzero at tokens.
        baseline, baselines, num_steps, num_samples, chunk_size, memory_budget, vocabulary: see `TokenTask`; without
            `baselines` the one baseline stands for them.

    Raises:
        ValueError: an unknown name (the message has the nearest), and as the method.
    """
    method = find_method(name)
    task = token_task(
        score, embeddings, mask, key, baseline, baselines, num_steps=num_steps, num_samples=num_samples,
        chunk_size=chunk_size, memory_budget=memory_budget, vocabulary=vocabulary,
    )  # fmt: skip
    result = method.compute(task)
    if method.finish is None:
        return result
    return jnp.asarray(method.finish(np.asarray(result), np.asarray(task.mask)), result.dtype)


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
    known = {**{key: key for key in names}, **{alias: of for alias, of in ALIASES.items() if of in names}}
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
        lambda t: l2_norm_over_dims(under_noise(smoothed, t)),
        is_signed=False,
        is_random=True,
    ),
    vargrad=TokenMethod(
        "variance of the gradient over Gaussian noise on the embeddings",
        lambda t: sum_over_dims(under_noise(noise_variance, t)),
        is_signed=False,
        is_random=True,
    ),
    integrated_gradients=TokenMethod(
        "gradients summed along the straight line from the baseline; adds up to the score's change",
        lambda t: sum_over_dims(integrated_gradients(t.score, t.embeddings, baseline=t.baseline, **t.steps(50))),
        total="change",
    ),
    sequential_integrated_gradients=TokenMethod(
        "integrated gradients of each token alone, from its baseline to itself, while the others stay",
        lambda t: sum_over_dims(
            sequential_integrated_gradients(t.score, t.embeddings, baseline=t.baseline, **t.steps(20))
        ),
    ),
    discretised_integrated_gradients=TokenMethod(
        "integrated gradients along a path that passes close to the vectors of other words",
        along_words,
        total="change",
        for_sequences=False,
    ),
    guided_integrated_gradients=TokenMethod(
        "integrated gradients along a path that moves what the score is least sensitive to first",
        guided,
        total="change",
        for_sequences=False,
    ),
    layer_conductance=TokenMethod(
        "how much of the score's change flows through a token's vector behind a layer, mean over layers",
        conductance,
        total="change",
        reads_layers=True,
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
    deeplift_reveal_cancel=TokenMethod(
        "DeepLIFT that treats what raises and what lowers an activation apart (reveal-cancel rule)",
        lambda t: sum_over_dims(deep_lift(t.score, t.embeddings, baseline=t.baseline, activation_rule="reveal_cancel")),
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
    lrp_gamma=TokenMethod(
        "layer-wise relevance propagation that favours positive weights (gamma rule, gamma = 0.05)",
        lambda t: sum_over_dims(lrp(t.score, t.embeddings, linear=_GAMMA)),
        total="score",
    ),
    lrp_alpha_beta=TokenMethod(
        "layer-wise relevance propagation of what speaks for and against apart (alpha-beta rule, 2 and 1)",
        lambda t: sum_over_dims(lrp(t.score, t.embeddings, linear=AlphaBeta())),
        total="score",
    ),
    occlusion=TokenMethod(
        "how much the score falls when the token is replaced by the baseline",
        lambda t: by_token(feature_ablation, t, **t.chunks),
    ),
    leave_one_span_out=TokenMethod(
        "how much the score falls when three tokens in a row are replaced, mean over the spans that hold the token",
        by_span,
    ),
    lime=TokenMethod(
        "coefficients of a local linear model of which tokens are present",
        lambda t: by_token(lime, t, t.key, **t.samples(1000)),
        is_random=True,
    ),
    kernel_shap=TokenMethod(
        "Shapley values as a regression over sets of tokens",
        lambda t: by_token(kernel_shap, t, t.key, **t.samples(1000)),
        total="change",
        is_random=True,
    ),
    shapley_sampling=TokenMethod(
        "Shapley values as mean contributions over random orders of the tokens",
        lambda t: by_token(shapley_sampling, t, t.key, **t.samples(25, "num_permutations")),
        total="change",
        is_random=True,
    ),
    exact_shapley=TokenMethod(
        f"Shapley values from all sets of tokens; for texts of at most {MAX_EXACT_FEATURES} tokens",
        lambda t: by_token(exact_shapley, t, **t.chunks),
        total="change",
        max_tokens=MAX_EXACT_FEATURES,
    ),
    rise=TokenMethod(
        "mean score of random sets of tokens that hold the token; compare within a text",
        lambda t: by_token(rise_over_groups, t, t.key, **t.samples(1000)),
        is_random=True,
    ),
    attention=TokenMethod(
        "what the first token attends to in the last layer, mean over heads; the weights of a model that pools by them",
        looked_at,
        is_signed=False,
        reads_layers=True,
    ),
    attention_rollout=TokenMethod(
        "what the first token attends to, followed through all layers and residual connections",
        lambda t: attention_rollout(attention_maps(t)),
        is_signed=False,
        reads_layers=True,
    ),
    attention_flow=TokenMethod(
        "maximum flow of attention from the first token through all layers (on the host; for short texts)",
        attention_maps,
        is_signed=False,
        finish=attention_flow,
        reads_layers=True,
    ),
    gradient_x_attention=TokenMethod(
        "attention weights times the score's gradient, summed over layers, heads and queries",
        lambda t: over_queries(gradient_x_attention, t),
        reads_layers=True,
    ),
    grad_sam=TokenMethod(
        "the same with positive gradients only",
        lambda t: over_queries(positive_gradient_x_attention, t),
        is_signed=False,
        reads_layers=True,
    ),
    value_zeroing=TokenMethod(
        "what the first token's vector owes to each token's value in a layer, mean over layers",
        owed_to_values,
        is_signed=False,
        reads_layers=True,
    ),
)
"""The methods, in the order of listings."""

ALIASES = {
    "ig": "integrated_gradients",
    "sig": "sequential_integrated_gradients",
    "dig": "discretised_integrated_gradients",
    "discretized_integrated_gradients": "discretised_integrated_gradients",
    "guided_ig": "guided_integrated_gradients",
    "lrp": "attnlrp",
    "deep_lift": "deeplift",
    "deep_shap": "deepshap",
    "reveal_cancel": "deeplift_reveal_cancel",
    "conductance": "layer_conductance",
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
