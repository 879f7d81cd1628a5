"""Every method for all targets of a sequence at once: which tokens made a causal model expect each token it wrote.

    scores = SequenceScores(trunk, head, positions, tokens)             # [batch, targets] of embeddings
    matrix = sequence_token_scores("integrated_gradients", scores, embeddings, mask, key=key)   # [batch, targets, time]

What a position of a causal model says depends on tokens up to it alone. So whatever is done to the whole sequence (a
step on the path from the baseline, noise, a mask) does to each target what doing it to the prefix before that target
would, and one forward pass serves the targets of all positions, exactly; behind a target's position its scores are 0.

| methods | what is shared |
|---|---|
| gradients along paths, under noise | the linearisation of a point; then one backward pass per target, in chunks |
| perturbation | a masked copy is run once for all targets |
| propagation, gradient x attention | the forward pass of each chunk of targets |
| attention | one run in all; a target's row is that of the position that predicts it |

`attributed` says what is moved: the whole prefix of each target (the default), or a part of it, say the prompt, while
the rest stays as it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxcore.attribution.attention import attention_rollout, attention_weights, raw_attention
from jaxcore.attribution.attention_flow import attention_flow
from jaxcore.attribution.chunking import chunked_map, chunked_sum
from jaxcore.attribution.combinators import add_noise
from jaxcore.attribution.compiled_programs import run_compiled
from jaxcore.attribution.input_checks import Baseline, Score, accumulation_dtype, checked_finite, checked_mask
from jaxcore.attribution.integrated_gradients import quadrature_rule
from jaxcore.attribution.interactions import value_zeroing
from jaxcore.attribution.method_names import TOKEN_METHODS, TokenMethod, method_name
from jaxcore.attribution.token_aggregation import Reduction, aggregate_tokens, l2_norm_over_dims, sum_over_dims
from jaxcore.attribution.token_reductions import noise_scale
from jaxcore.attribution.token_task import TokenTask, token_task

TargetScore = Literal["log_probability", "probability", "logit", "margin"]


@dataclasses.dataclass(frozen=True)
class SequenceScores:
    """The scores of several targets per sequence from one forward pass: ``scores(embeddings) -> [batch, targets]``.

        log_probability  log softmax(z)_c        logit   z_c
        probability      softmax(z)_c            margin  z_c - max_{k != c} z_k      with z the logits at the position

    With `versus` the score is the difference of both tokens' ("why A rather than B" in the same context). For logits
    and log-probabilities that is the log-odds of one against the other.

    Attributes:
        trunk: embeddings [batch, time, dim] -> what the logits of each position are made of, [batch, time, hidden];
            causal: a position depends on those up to it.
        head: hidden states [batch, targets, hidden] -> logits [batch, targets, vocab], each of its own state alone.
        positions: of what predicts each target: one before the target itself.
        tokens: ids of the targets.
        versus: ids of the tokens they are contrasted with; -1 where a target has none.
        kind: the score.

    Source of contrastive targets: Yin & Neubig 2022, section 3 (there logits, or probabilities).
    """

    trunk: Callable[[Float[Array, "batch time dim"]], Float[Array, "batch time hidden"]]
    head: Callable[[Float[Array, "batch targets hidden"]], Float[Array, "batch targets vocab"]]
    positions: Int[Array, "batch targets"]
    tokens: Int[Array, "batch targets"]
    versus: Int[Array, "batch targets"] | None = None
    kind: TargetScore = "log_probability"

    @property
    def num_targets(self) -> int:
        return self.positions.shape[1]

    def __call__(self, embeddings: Float[Array, "batch time dim"]) -> Float[Array, "batch targets"]:
        return self.of_states(self.states(self.trunk(embeddings)))

    def states(self, hidden: Float[Array, "batch time hidden"]) -> Float[Array, "batch targets hidden"]:
        """The hidden states that predict the targets."""
        return jnp.take_along_axis(hidden, jnp.asarray(self.positions)[..., None], axis=1)

    def of_states(self, states: Float[Array, "batch targets hidden"]) -> Float[Array, "batch targets"]:
        """The targets' scores, each from its own hidden state."""
        logits = self.head(states)
        chosen = _token_scores(logits, self.tokens, self.kind)
        if self.versus is None:
            return chosen
        foil = _token_scores(logits, jnp.maximum(jnp.asarray(self.versus), 0), self.kind)
        return jnp.where(jnp.asarray(self.versus) >= 0, chosen - foil, chosen)

    def of_target(self, number: Int[Array, ""] | int) -> Score:
        """One target's score as a function of embeddings; the number may be traced."""

        def one(values: Any) -> Any:
            return None if values is None else jnp.take(jnp.asarray(values), jnp.asarray([number]), axis=1)

        alone = dataclasses.replace(
            self, positions=one(self.positions), tokens=one(self.tokens), versus=one(self.versus)
        )
        return lambda embeddings: alone(embeddings)[:, 0]


def target_gradients(
    scores: SequenceScores,
    embeddings: Float[Array, "batch time dim"],
    reduce: Callable[[Float[Array, "batch time dim"]], Any] = lambda gradient: gradient,
    *,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Any:
    """``reduce(d score_n / d embeddings)`` for every target n, stacked in front, from one linearisation of the trunk.

        J' c_n,   c_n = d score_n / d hidden (of all targets at once: each looks at its own position)

    Args:
        reduce: what is kept of a gradient, say a number per token: then no gradient of all targets is ever held.
        chunk_size: targets pulled back together; by default as many as fit `memory_budget` (bytes).
    """
    hidden, pull_back = jax.vjp(scores.trunk, embeddings)
    states = scores.states(hidden)
    cotangents = jax.grad(lambda states: jnp.sum(scores.of_states(states)))(states)
    rows, positions = jnp.arange(hidden.shape[0]), jnp.asarray(scores.positions)

    def one(number: Array) -> Any:
        cotangent = jnp.zeros_like(hidden).at[rows, positions[:, number]].set(cotangents[:, number])
        (gradient,) = pull_back(cotangent)
        return reduce(gradient.astype(accumulation_dtype(gradient)))

    return chunked_map(one, jnp.arange(scores.num_targets), chunk_size=chunk_size, memory_budget=memory_budget)


def sequence_token_scores(
    name: str,
    scores: SequenceScores,
    embeddings: Float[Array, "batch time dim"],
    mask: Bool[Array, "batch time"] | Int[Array, "batch time"],
    *,
    key: Key[Array, ""],
    attributed: Bool[Array, "batch time"] | None = None,
    baseline: Baseline = 0.0,
    baselines: Float[Array, "baselines time dim"] | None = None,
    num_steps: int | None = None,
    num_samples: int | None = None,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch targets time"]:
    """How much each token made each target what it is, by the method of this name.

    For a target at position p this is what the method gives for the sequence cut off behind p and the target's score.
    (Of the regressions, LIME and KernelSHAP, up to their sampling: sets are drawn of all tokens, and the chance
    coefficients of tokens behind p are set to 0.)

    Args:
        name: of `SEQUENCE_METHODS`.
        scores: see `SequenceScores`; attention methods read the attention weights that its trunk names.
        embeddings: of the whole sequence, targets included (the last of them has no part).
        mask: nonzero at tokens.
        key: of random methods; all targets share the draws.
        attributed: True at the tokens that are moved (those of a prompt, say); None: all tokens.
        baseline, baselines, num_steps, num_samples: as in `token_scores`.
        chunk_size: targets (of perturbation methods: masked copies) evaluated together; by default as many as fit.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        Scores; 0 at padding, at tokens that are not attributed, and behind a target's position.

    Raises:
        ValueError: an unknown name (the message has the nearest), positions, tokens or versus of other shapes than
            [batch, targets] or out of range, an unknown kind of score, and as `token_scores`.
    """
    method = find_sequence_method(name)
    task = sequence_task(
        scores, embeddings, mask, key, attributed, baseline, baselines, num_steps=num_steps, num_samples=num_samples,
        chunk_size=chunk_size, memory_budget=memory_budget,
    )  # fmt: skip
    if method.finish is None:
        return checked_finite(run_compiled(lambda: task.kept(method.compute(task))), name)
    result = np.asarray(run_compiled(lambda: method.compute(task)))
    finished = method.finish(result, np.asarray(task.mask), np.asarray(scores.positions))
    return checked_finite(task.kept(jnp.asarray(finished, result.dtype)), name)


def sequence_task(
    scores: SequenceScores,
    embeddings: Float[Array, "batch time dim"],
    mask: Array,
    key: Key[Array, ""],
    attributed: Array | None,
    baseline: Baseline,
    baselines: Array | None = None,
    **counts: int | None,
) -> "SequenceTask":
    """The checked task; ValueError for what no method could use."""
    _check_scores(scores, embeddings)
    mask = checked_mask(mask, jnp.shape(embeddings)[:2])
    moved = mask
    if attributed is not None:
        moved = mask & checked_mask(attributed, mask.shape)
        if not isinstance(moved, jax.core.Tracer) and not np.asarray(moved).any(axis=1).all():
            raise ValueError("attributed leaves nothing to attribute to: every sequence needs at least one such token")
        trunk, inside = scores.trunk, moved[:, :, None]
        scores = dataclasses.replace(scores, trunk=lambda moving: trunk(jnp.where(inside, moving, embeddings)))
    # Jitted: traced once, however often a method evaluates it.
    scores = dataclasses.replace(scores, trunk=jax.jit(scores.trunk), head=jax.jit(scores.head))
    settings: Any = counts
    one = token_task(scores.of_target(0), embeddings, moved, key, baseline, baselines, **settings)
    return SequenceTask(scores, one, mask)


@dataclasses.dataclass(frozen=True)
class SequenceTask:
    """What a method is given: the scores, and the task of a single target (`one.mask`: what is attributed to)."""

    scores: SequenceScores
    one: TokenTask
    mask: Bool[Array, "batch time"]

    def of_target(self, number: Any, **changes: Any) -> TokenTask:
        """The task of one target."""
        return self.one._replace(score=self.scores.of_target(number), **changes)

    def gradients(self, point: Array, reduce: Callable[[Array], Any]) -> Any:
        """`target_gradients` at a point."""
        return target_gradients(self.scores, point, reduce, **self.one.chunks)

    def over_points(self, term: Callable[[Any], Any], items: Any) -> Any:
        """The sum of a term over points, one after the other: targets are what fills the memory."""
        return chunked_sum(term, items, chunk_size=1)

    def kept(self, result: Float[Array, "batch targets time"]) -> Float[Array, "batch targets time"]:
        """The result where it is defined, 0 elsewhere."""
        before = jnp.arange(self.mask.shape[1]) <= jnp.asarray(self.scores.positions)[..., None]
        return jnp.where(self.one.mask[:, None, :] & before, result, 0)


@dataclasses.dataclass(frozen=True)
class SequenceMethod:
    """A method by its name.

    Attributes:
        description, is_signed, total, is_random: as of `TokenMethod`.
        compute: task -> scores [batch, targets, time], or what `finish` makes them of.
        finish: the host's half: (compute's result, mask, positions) -> scores.
    """

    description: str
    compute: Callable[[SequenceTask], Array]
    is_signed: bool
    total: Literal["change", "mean_change", "score"] | None
    is_random: bool
    finish: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None


def expected_totals(method: SequenceMethod, task: SequenceTask) -> Float[Array, "batch targets"] | None:
    """What a target's scores would sum to if the method were exact (see `TokenMethod.total`), or None."""
    if method.total is None:
        return None
    embeddings = task.one.embeddings
    whole = task.scores(embeddings)
    if method.total == "score":
        return whole
    at = lambda baseline: task.scores(jnp.broadcast_to(baseline, embeddings.shape).astype(embeddings.dtype))  # noqa: E731
    if method.total == "change":
        return whole - at(task.one.baseline)
    return whole - jnp.mean(jax.lax.map(at, task.one.baselines), axis=0)


def find_sequence_method(name: str) -> SequenceMethod:
    """The method of this name or alias; ValueError with the nearest names if there is none."""
    return SEQUENCE_METHODS[method_name(name, SEQUENCE_METHODS)]


def aggregate_matrix(
    scores: Float[Array, "batch targets time"],
    target_ids: Int[Array, "batch targets"],
    source_ids: Int[Array, "batch time"],
    *,
    target_reduction: Reduction = "sum",
    source_reduction: Reduction = "sum",
    num_targets: int | None = None,
    num_sources: int | None = None,
) -> Float[Array, "batch target_segments source_segments"]:
    """A matrix of tokens as one of words, sentences or spans, of targets and of sources.

        M[u, w] = r'_{n: target_ids_n = u} r_{t: source_ids_t = w} scores[n, t]

    Sums over sources keep completeness. The sum over the targets of a word is, for methods linear in the score, the
    attribution of the sum of their scores: of log-probabilities, that of the whole word.

    Args:
        target_ids, source_ids: the segment of each target and of each token, -1 for none.
        target_reduction, source_reduction, num_targets, num_sources: as in `aggregate_tokens`.

    Raises:
        ValueError: ids of other shapes than the scores, and as `aggregate_tokens`.
    """
    batch, targets, time = jnp.shape(scores)
    for name, ids, shape in (("target_ids", target_ids, (batch, targets)), ("source_ids", source_ids, (batch, time))):
        if jnp.shape(ids) != shape:
            raise ValueError(f"{name} must be {list(shape)}, one per entry of the scores: got {list(jnp.shape(ids))}")
    repeated = (np if isinstance(source_ids, np.ndarray) else jnp).repeat(source_ids, targets, axis=0)
    by_source = aggregate_tokens(
        scores.reshape(batch * targets, time), repeated, reduction=source_reduction, num_segments=num_sources
    ).scores
    width = by_source.shape[1]
    columns = jnp.moveaxis(by_source.reshape(batch, targets, width), 2, 1).reshape(batch * width, targets)
    repeated = (np if isinstance(target_ids, np.ndarray) else jnp).repeat(target_ids, width, axis=0)
    found = aggregate_tokens(columns, repeated, reduction=target_reduction, num_segments=num_targets).scores
    return jnp.moveaxis(found.reshape(batch, width, -1), 2, 1)


def _token_scores(logits: Array, tokens: Array, kind: str) -> Float[Array, "batch targets"]:
    chosen = jnp.take_along_axis(logits, jnp.asarray(tokens)[..., None], axis=-1)[..., 0]
    if kind == "logit":
        return chosen
    if kind == "margin":
        is_chosen = jnp.asarray(tokens)[..., None] == jnp.arange(logits.shape[-1])
        return chosen - jnp.max(jnp.where(is_chosen, -jnp.inf, logits), axis=-1)
    log_probability = chosen - jax.nn.logsumexp(logits, axis=-1)
    return log_probability if kind == "log_probability" else jnp.exp(log_probability)


def _check_scores(scores: SequenceScores, embeddings: Array) -> None:
    if jnp.ndim(embeddings) != 3 or not jnp.issubdtype(jnp.result_type(embeddings), jnp.floating):
        raise ValueError(
            f"embeddings must be floats [batch, time, dim]: got {jnp.result_type(embeddings)}"
            f"{list(jnp.shape(embeddings))}"
        )
    if scores.kind not in get_args(TargetScore):
        raise ValueError(f"kind must be one of {', '.join(get_args(TargetScore))}: got {scores.kind!r}")
    batch, time = embeddings.shape[:2]
    shape = jnp.shape(scores.positions)
    if len(shape) != 2 or shape[0] != batch or not shape[1]:
        raise ValueError(f"positions must be [{batch}, targets], at least one per sequence: got {list(shape)}")
    states = jax.eval_shape(lambda x: scores.states(scores.trunk(x)), embeddings)
    vocab = jax.eval_shape(scores.head, states).shape[-1]
    limits = {"positions": (0, time), "tokens": (0, vocab), "versus": (-1, vocab)}
    for name, (lowest, end) in limits.items():
        values = getattr(scores, name)
        if values is None:
            continue
        if jnp.shape(values) != shape or not jnp.issubdtype(jnp.result_type(values), jnp.integer):
            raise ValueError(
                f"{name} must be integers {list(shape)}, one per target: got {jnp.result_type(values)}"
                f"{list(jnp.shape(values))}"
            )
        if not isinstance(values, jax.core.Tracer):
            known = np.asarray(values)
            if known.min() < lowest or known.max() >= end:
                outside = known[(known < lowest) | (known >= end)][0]
                raise ValueError(f"{name} must be {lowest} to {end - 1}: got {outside}")


# ---- methods ---------------------------------------------------------------------------------------------


def _targets_second(stacked: Float[Array, "targets batch time"]) -> Float[Array, "batch targets time"]:
    return jnp.moveaxis(stacked, 0, 1)


def _saliency(task: SequenceTask) -> Array:
    return _targets_second(task.gradients(task.one.embeddings, l2_norm_over_dims))


def _input_x_gradient(task: SequenceTask) -> Array:
    difference = task.one.embeddings - jnp.asarray(task.one.baseline, task.one.embeddings.dtype)
    return _targets_second(task.gradients(task.one.embeddings, lambda g: sum_over_dims(g * difference)))


def _integrated_gradients(task: SequenceTask) -> Array:
    embeddings = task.one.embeddings
    baseline = jnp.broadcast_to(jnp.asarray(task.one.baseline, embeddings.dtype), embeddings.shape)
    difference = (embeddings - baseline).astype(accumulation_dtype(embeddings))
    nodes, weights = map(jnp.asarray, quadrature_rule("gauss_legendre", task.one.num_steps or 50))

    def term(item: tuple[Array, Array]) -> Array:
        node, weight = item
        point = (baseline + node * difference).astype(embeddings.dtype)
        return weight * task.gradients(point, lambda g: sum_over_dims(g * difference))

    return _targets_second(task.over_points(term, (nodes.astype(difference.dtype), weights.astype(difference.dtype))))


def _expected_gradients(task: SequenceTask) -> Array:
    embeddings, baselines, samples = task.one.embeddings, task.one.baselines, task.one.num_samples or 100
    batch, dtype = embeddings.shape[0], accumulation_dtype(embeddings)

    def term(key: Array) -> Array:
        row_key, node_key, _ = jax.random.split(key, 3)
        start = baselines[jax.random.randint(row_key, (batch,), 0, baselines.shape[0])]
        nodes = jax.random.uniform(node_key, (batch,)).astype(dtype)[:, None, None]
        difference = (embeddings - start).astype(dtype)
        point = (start + nodes * difference).astype(embeddings.dtype)
        return task.gradients(point, lambda g: sum_over_dims(g * difference)) / samples

    return _targets_second(task.over_points(term, jax.random.split(task.one.key, samples)))


def _noisy(task: SequenceTask) -> tuple[Callable[[Array], Array], Array]:
    """key -> the embeddings with noise, and the keys of all samples; the draws of `smoothed` and `noise_variance`."""
    scale = jnp.broadcast_to(noise_scale(task.one), task.one.embeddings.shape)
    keys = jax.random.split(task.one.key, task.one.num_samples or 25)
    return lambda key: add_noise(task.one.embeddings, jax.random.split(key)[0], scale), keys


def _smoothgrad(task: SequenceTask) -> Array:
    noisy, keys = _noisy(task)
    total = task.over_points(lambda key: task.gradients(noisy(key), lambda g: g), keys)
    return _targets_second(l2_norm_over_dims(total / len(keys)))


def _vargrad(task: SequenceTask) -> Array:
    noisy, keys = _noisy(task)
    centre = task.gradients(task.one.embeddings, lambda g: g)

    def moments(key: Array) -> tuple[Array, Array]:
        deviation = task.gradients(noisy(key), lambda g: g) - centre
        return deviation, jnp.square(deviation)

    first, second = task.over_points(moments, keys)
    return _targets_second(sum_over_dims(jnp.maximum(second / len(keys) - (first / len(keys)) ** 2, 0)))


def _by_masked_copies(method: TokenMethod) -> Callable[[SequenceTask], Array]:
    """All targets together: what does not depend on the target, such as a masked copy's forward pass, is run once."""

    def compute(task: SequenceTask) -> Array:
        numbers = jnp.arange(task.scores.num_targets)
        return _targets_second(jax.vmap(lambda number: method.compute(task.of_target(number)))(numbers))

    return compute


def _by_target(method: TokenMethod) -> Callable[[SequenceTask], Array]:
    """As many targets together as fit; what a single one expands is taken one at a time."""

    def compute(task: SequenceTask) -> Array:
        def one(number: Array) -> Array:
            return method.compute(task.of_target(number, chunk_size=1))

        return _targets_second(chunked_map(one, jnp.arange(task.scores.num_targets), **task.one.chunks))

    return compute


def _rows(read: Callable[..., Array]) -> Callable[[SequenceTask], Array]:
    """A reading of attention maps, for each target from the position that predicts it."""

    def compute(task: SequenceTask) -> Array:
        weights = attention_weights(task.scores.trunk)(task.one.embeddings)
        positions = jnp.asarray(task.scores.positions)
        return jax.vmap(lambda query: read(weights, query=query), in_axes=1, out_axes=1)(positions)

    return compute


def _flows(weights: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
    rows = []
    for example, targets in enumerate(positions):
        here = slice(example, example + 1)
        rows.append([attention_flow(weights[here], mask[here], query=int(query))[0] for query in targets])
    return np.asarray(rows)


def _value_zeroing(task: SequenceTask) -> Array:
    maps = value_zeroing(lambda: task.scores.trunk(task.one.embeddings), task.mask, **task.one.chunks)
    positions = jnp.asarray(task.scores.positions)
    return jnp.take_along_axis(jnp.mean(maps, axis=0), positions[..., None], axis=1)


_SHARED_LINEARISATION: dict[str, Callable[[SequenceTask], Array]] = {
    "saliency": _saliency,
    "input_x_gradient": _input_x_gradient,
    "smoothgrad": _smoothgrad,
    "vargrad": _vargrad,
    "integrated_gradients": _integrated_gradients,
    "expected_gradients": _expected_gradients,
}
_MASKED_COPIES = ("occlusion", "lime", "kernel_shap", "shapley_sampling")
_ATTENTION: dict[str, tuple[str, Any, Any]] = {
    "attention": (
        "what the predicting token attends to in the last layer, mean over heads",
        _rows(raw_attention),
        None,
    ),
    "attention_rollout": (
        "what the predicting token attends to, followed through all layers and residual connections",
        _rows(attention_rollout),
        None,
    ),
    "attention_flow": (
        "maximum flow of attention from the predicting token through all layers (on the host; for short texts)",
        lambda task: attention_weights(task.scores.trunk)(task.one.embeddings),
        _flows,
    ),
}


def _sequence_method(name: str, method: TokenMethod) -> SequenceMethod:
    described = method.description, method.is_signed, method.total, method.is_random
    if name in _ATTENTION:
        description, compute, finish = _ATTENTION[name]
        return SequenceMethod(description, compute, *described[1:], finish)
    compute = _SHARED_LINEARISATION.get(name)
    if compute is None:
        compute = (_by_masked_copies if name in _MASKED_COPIES else _by_target)(method)
    return SequenceMethod(method.description, compute, *described[1:])


SEQUENCE_METHODS: dict[str, SequenceMethod] = {
    **{name: _sequence_method(name, method) for name, method in TOKEN_METHODS.items() if method.for_sequences},
    "value_zeroing": SequenceMethod(
        "what the predicting token's vector owes to each token's value in a layer, mean over layers",
        _value_zeroing,
        is_signed=False,
        total=None,
        is_random=False,
    ),
}
"""The methods, in the order of listings."""
