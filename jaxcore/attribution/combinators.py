"""Functions from attribution methods to attribution methods, and from a score of the input to one of a layer.

A method is ``method(score, inputs, **options) -> attributions``; a random one takes a `key` after the inputs. So is
what comes out, and combinators nest:

    robust = smoothed(over_baselines(input_x_gradient, baselines), num_samples=25, noise_scale=0.1)
    robust(score, inputs, jax.random.key(0))

    activation, score_of_activation = at_layer(score, inputs, "layer_output", layer=3)
    integrated_gradients(score_of_activation, activation)

A contrast ("why A rather than B") is a property of the score, see `jaxcore.attribution.scores`; `contrastive` makes
that score for any method. `chunked` takes a batch a few examples at a time.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxcore.attribution.chunking import chunked_map, chunked_sum
from jaxcore.attribution.feature_groups import FeatureGroups, feature_groups
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_inputs,
    check_positive,
    check_score,
    checked_finite,
)
from jaxcore.attribution.layers import activation_site, named_activation
from jaxcore.attribution.scores import Predict, Target, contrast, margin
from jaxcore.transforms import intervene

Method: TypeAlias = Callable[..., Any]
"""``method(score, inputs, **options) -> attributions``, or ``method(score, inputs, key, **options)``."""


def smoothed(
    method: Method,
    *,
    noise_scale: Baseline,
    num_samples: int = 25,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Method:
    """SmoothGrad of any method: its mean over Gaussian noise added to the input.

        smoothed(m)(score, x, key) = 1/S sum_s m(score, x + e_s),    e_s ~ N(0, noise_scale^2)

    Args:
        method: the method to smooth; if it takes a `key`, each sample gets one of its own.
        noise_scale: the noise's standard deviation in units of the inputs: a number, or a pytree that broadcasts
            against them. The paper takes 10 to 20 % of an image's range, max(x) - min(x).
        num_samples: S.
        chunk_size: samples evaluated together; by default as many as fit `memory_budget` (bytes).

    Returns:
        ``smoothed_method(score, inputs, key, **options)``; options go to `method`.

    Raises:
        ValueError: num_samples, chunk_size or memory_budget that is not a whole number of at least 1; when called, a
            negative noise_scale or one that does not broadcast.

    Source: Smilkov et al. 2017.
    """
    check_positive(num_samples=num_samples, chunk_size=chunk_size, memory_budget=memory_budget)

    def smoothed_method(score: Score, inputs: Inputs, key: Key[Array, ""], **options: Any) -> Any:
        sample = _noisy_method(method, score, inputs, noise_scale, options)
        total = chunked_sum(
            sample, jax.random.split(key, num_samples), chunk_size=chunk_size, memory_budget=memory_budget
        )
        return checked_finite(jax.tree.map(lambda t: t / num_samples, total), "smoothed")

    return smoothed_method


def smoothed_square(
    method: Method,
    *,
    noise_scale: Baseline,
    num_samples: int = 25,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Method:
    """SmoothGrad-squared: ``1/S sum_s m(score, x + e_s)^2``, in squared units of the method. See `smoothed`.

    Source: Hooker et al. 2019, section 3.2.
    """

    def squared(*args: Any, **options: Any) -> Any:
        return jax.tree.map(jnp.square, method(*args, **options))

    squared.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]  # it takes a key if method does
    return smoothed(
        squared,
        noise_scale=noise_scale,
        num_samples=num_samples,
        chunk_size=chunk_size,
        memory_budget=memory_budget,
    )


def noise_variance(
    method: Method,
    *,
    noise_scale: Baseline,
    num_samples: int = 25,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Method:
    """VarGrad: the variance of a method over Gaussian noise added to the input, in squared units of the method.

        1/S sum_s (m(score, x + e_s) - mean)^2

    Args, errors: see `smoothed`. Deviations are taken from the attributions without noise first, so that a variance
    much smaller than the squared mean keeps its digits.

    Source: Adebayo et al. 2018, appendix A.
    """
    check_positive(num_samples=num_samples, chunk_size=chunk_size, memory_budget=memory_budget)

    def variance_method(score: Score, inputs: Inputs, key: Key[Array, ""], **options: Any) -> Any:
        sample = _noisy_method(method, score, inputs, noise_scale, options)
        keys = jax.random.split(key, num_samples)
        centre = method(score, inputs, *([keys[0]] if _takes_key(method) else []), **options)

        def moments(key: Array) -> tuple[Any, Any]:
            deviation = jax.tree.map(jnp.subtract, sample(key), centre)
            return deviation, jax.tree.map(jnp.square, deviation)

        sums = chunked_sum(moments, keys, chunk_size=chunk_size, memory_budget=memory_budget)
        variance = jax.tree.map(lambda d, s: jnp.maximum(s / num_samples - (d / num_samples) ** 2, 0), *sums)
        return checked_finite(variance, "noise_variance")

    return variance_method


def over_baselines(
    method: Method,
    baselines: Inputs,
    *,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Method:
    """The mean of a method over a set of baselines; DeepSHAP, for instance, is DeepLIFT over a set of baselines.

        over_baselines(m, B)(score, x) = 1/|B| sum_{b in B} m(score, x, baseline=b)

    Args:
        method: a method with a `baseline` option.
        baselines: a pytree like the inputs with a leading axis that counts baselines, [num_baselines, ...]; each
            entry broadcasts against the inputs (one example's shape, or a whole batch).
        chunk_size: baselines evaluated together; by default as many as fit `memory_budget` (bytes).

    Returns:
        A method with the signature of `method`, less its `baseline`.

    Raises:
        ValueError: no baselines, leaves with different numbers of them; when called, a `baseline` among the options,
            baselines that do not broadcast against the inputs.

    Source: Lundberg and Lee 2017, section 4.2; Erion et al. 2021 (expected gradients: baselines as a distribution).
    """
    check_positive(chunk_size=chunk_size, memory_budget=memory_budget)
    baselines = jax.tree.map(jnp.asarray, baselines)
    counts = sorted({jnp.shape(leaf)[0] if jnp.ndim(leaf) else 0 for leaf in jax.tree.leaves(baselines)})
    if len(counts) != 1 or counts[0] < 1:
        raise ValueError(f"baselines must be arrays [num_baselines, ...], of one number, at least 1: got {counts}")
    num_baselines = counts[0]

    @functools.wraps(method)
    def mean_method(score: Score, inputs: Inputs, *args: Any, **options: Any) -> Any:
        if "baseline" in options:
            raise ValueError("over_baselines already has its baselines: leave the option `baseline` out")
        broadcast_baseline(jax.tree.map(lambda b: b[0], baselines), inputs)
        one = lambda baseline: method(score, inputs, *args, baseline=baseline, **options)  # noqa: E731
        total = chunked_sum(one, baselines, chunk_size=chunk_size, memory_budget=memory_budget)
        return checked_finite(jax.tree.map(lambda t: t / num_baselines, total), "over_baselines")

    return mean_method


def normalised(method: Method) -> Method:
    """The method with each example's attributions scaled to unit mass: ``a / sum |a|`` over all leaves.

    Signs and ratios stay; an example whose attributions are all zero keeps them.
    """

    @functools.wraps(method)
    def unit_method(*args: Any, **options: Any) -> Any:
        attributions = method(*args, **options)
        axes = lambda leaf: tuple(range(1, leaf.ndim))  # noqa: E731
        mass = sum(jnp.sum(jnp.abs(leaf), axis=axes(leaf)) for leaf in jax.tree.leaves(attributions))
        scale = jnp.where(mass > 0, 1 / jnp.where(mass > 0, mass, 1), 0)
        return jax.tree.map(lambda leaf: leaf * jnp.expand_dims(scale, axes(leaf)), attributions)

    return unit_method


def contrastive(method: Method) -> Method:
    """Why one class rather than another: a method's attributions of the difference of their logits.

        contrastive(m)(predict, x, target=c, versus=c') = m(z_c - z_c', x)

    For a method linear in the score (gradients along any path, ablation, Shapley values) it is the difference of the
    attributions of both logits, at the price of one.

    Returns:
        ``contrastive_method(predict, inputs, *args, target, versus=None, **options)``, where `predict` maps inputs to
        logits [batch, classes]; versus=None: the strongest other class at each point, `jaxcore.attribution.margin`.

    Raises:
        ValueError: when called, a target out of range; as the method.

    Source: Yin & Neubig 2022 (contrastive explanations), for gradients and erasure.
    """

    def contrastive_method(
        predict: Predict, inputs: Inputs, *args: Any, target: Target, versus: Target | None = None, **options: Any
    ) -> Any:
        score = margin(predict, target) if versus is None else contrast(predict, target, versus)
        return method(score, inputs, *args, **options)

    return contrastive_method


def chunked(
    method: Method, *, context: Any = None, chunk_size: int | None = None, memory_budget: int | None = None
) -> Method:
    """The method over a few examples at a time, for batches of which a single pass does not fit the memory.

        chunked(m)(score, x)[b] = m(score, x[b : b + 1])[0]

    (Steps, samples and masks are chunked by the methods themselves, see `jaxcore.attribution.chunking`.)

    Args:
        method: the method; if it takes a `key`, each example gets one of its own, whatever the chunk.
        context: what else the score takes of each example (masks, targets), a pytree of arrays [batch, ...]: with it,
            the score is called as ``score(inputs, context)``, both of the same few examples. A score that holds such
            arrays itself cannot be chunked.
        chunk_size: examples evaluated together; by default as many as fit `memory_budget` (bytes).

    Returns:
        A method with the signature of `method`. Its `baseline`, `noise_scale`, `groups` and `spans` may be those of the
        whole batch, one per example, and are then taken apart with the examples; what all examples share (a leading
        axis of 1, or none) stays whole, and so do other options. Features keep their numbers and their count: one that
        only other examples have is absent.

    Raises:
        ValueError: context or one of these options of another batch than the inputs; groups as in
            `jaxcore.attribution.feature_groups`; as the method, for a batch of one.
    """
    check_positive(chunk_size=chunk_size, memory_budget=memory_budget)
    names, takes_key = _names_by_place(method), _takes_key(method)

    @functools.wraps(method)
    def chunked_method(score: Any, inputs: Inputs, *args: Any, **options: Any) -> Any:
        batch = check_inputs(inputs)
        if any(jnp.shape(leaf)[:1] != (batch,) for leaf in jax.tree.leaves(context)):
            raise ValueError(f"context must hold arrays [{batch}, ...]: got {jax.tree.map(jnp.shape, context)}")
        options = dict(**dict(zip(names, args, strict=False)), **options)  # an argument given twice is an error
        rest = args[len(names) :]
        key = options.pop("key", None) if takes_key else None
        differing = _options_of_examples(options, inputs)
        shared = {name: value for name, value in options.items() if name not in differing}
        own = jax.tree.map(lambda leaf: leaf if jnp.shape(leaf)[:1] == (batch,) else None, differing)

        def one(item: Any) -> Any:
            example, number = item
            x, held, parts = jax.tree.map(lambda leaf: leaf[None], example)
            of_example = score if context is None else lambda x: score(x, held)
            given = jax.tree.map(lambda whole, part: whole if part is None else part, differing, parts)
            own_key = {} if key is None else {"key": jax.random.fold_in(key, number)}
            result = method(of_example, x, *rest, **own_key, **given, **shared)
            return jax.tree.map(lambda leaf: leaf[0], result)

        items = jax.tree.map(jnp.asarray, (inputs, context, own)), jnp.arange(batch)
        found = chunked_map(one, items, chunk_size=chunk_size, memory_budget=memory_budget)
        return checked_finite(found, "chunked")

    return chunked_method


def at_layer(
    score: Score,
    inputs: Inputs,
    name: str,
    *,
    layer: int | tuple[int, ...] | None = None,
    batch_axis: int = 0,
) -> tuple[Float[Array, "batch ..."], Callable[[Float[Array, "batch ..."]], Float[Array, " batch"]]]:
    """A named activation, and the score as a function of it: any method then attributes to the inner layer.

        activation, score_of_activation = at_layer(score, inputs, "hidden")
        score_of_activation(activation) == score(inputs)

    Everything else in the score (what flows around the layer, masks, other inputs) stays as the inputs make it.
    The activation of other inputs, as a baseline: ``at_layer(score, others, "hidden")[0]``.

    Args:
        score: maps inputs to [batch].
        inputs: a pytree of floating-point arrays [batch, ...].
        name: a value named with `jax.ad_checkpoint.checkpoint_name`, at one place of the program.
        layer: for a name inside a scan (whose activation is the stack [layers, batch, ...]), which layer's value to
            attribute to; negative counts from the end, a tuple goes through nested loops, outermost first.
        batch_axis: where the batch is in the activation, after `layer` has been chosen. For a scan over time
            without a `layer`, [time, batch, dim], 1 attributes to all times at once: each iteration's value is
            replaced by its own.

    Returns:
        The activation with the batch in front, and a score of such activations (it keeps the inputs).

    Raises:
        ValueError: see `activation_site`; a name inside a loop with neither `layer` nor a `batch_axis` behind the
            loops; a layer out of range or outside any loop; a batch axis of another length than the batch.
    """
    batch = check_score(score, inputs)
    site = activation_site(score, inputs, name)
    chosen = _chosen_layer(name, layer, site.value.shape[: site.num_loops])
    remaining = site.value.shape[len(chosen) :]
    if not chosen and batch_axis < site.num_loops:
        raise ValueError(
            f"{name!r} lies in a loop and is stacked to {list(site.value.shape)}: choose layer= (0 to "
            f"{site.value.shape[0] - 1}), or batch_axis={site.num_loops} or more to attribute to all iterations at once"
        )
    if not 0 <= batch_axis < len(remaining) or remaining[batch_axis] != batch:
        raise ValueError(
            f"the activation {name!r} of shape {list(remaining)} has no batch of {batch} at axis {batch_axis}: "
            "say with batch_axis= where it is"
        )

    def score_of_activation(activation: Array) -> Array:
        replacement = jnp.moveaxis(activation, 0, batch_axis)

        def edit(value: Array, *, step: Any = None) -> Array:
            if step is None or not chosen:
                return (replacement if step is None else replacement[step]).astype(value.dtype)
            here = functools.reduce(
                jnp.logical_and, map(jnp.equal, step if isinstance(step, tuple) else (step,), chosen)
            )
            return jnp.where(here, replacement.astype(value.dtype), value)

        return intervene(score, {name: edit})(inputs)

    return jnp.moveaxis(named_activation(score, name)(inputs)[chosen], batch_axis, 0), score_of_activation


def add_noise(inputs: Inputs, key: Key[Array, ""], scale: Inputs) -> Inputs:
    """``inputs + scale * N(0, 1)``, each leaf with noise of its own; `scale` has the inputs' structure."""
    leaves, structure = jax.tree.flatten(inputs)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        (x + s * jax.random.normal(k, x.shape, accumulation_dtype(x))).astype(x.dtype)
        for x, s, k in zip(leaves, jax.tree.leaves(scale), keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


def check_noise_scale(noise_scale: Baseline, inputs: Inputs) -> Inputs:
    """The noise scale as a pytree like the inputs; ValueError where it does not broadcast or is negative."""
    for leaf in jax.tree.leaves(noise_scale):
        if not isinstance(leaf, jax.core.Tracer) and np.any(np.asarray(leaf) < 0):
            raise ValueError(f"noise_scale is a standard deviation and must not be negative: got {np.min(leaf)}")
    try:
        return broadcast_baseline(noise_scale, inputs)
    except ValueError as error:
        raise ValueError(str(error).replace("baseline", "noise_scale")) from error


def _noisy_method(
    method: Method, score: Score, inputs: Inputs, noise_scale: Baseline, options: dict[str, Any]
) -> Callable[[Array], Any]:
    """key -> the method's attributions at inputs with noise."""
    check_score(score, inputs)
    scale = check_noise_scale(noise_scale, inputs)
    takes_key = _takes_key(method)

    def sample(key: Array) -> Any:
        noise_key, method_key = jax.random.split(key)
        return method(score, add_noise(inputs, noise_key, scale), *([method_key] if takes_key else []), **options)

    return sample


def _options_of_examples(options: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """The options in which examples differ, checked; what they share in these has a leading axis of 1."""
    batch = check_inputs(inputs)
    found = {}
    for name, check in (("baseline", broadcast_baseline), ("noise_scale", check_noise_scale)):
        if not isinstance(options.get(name), int | float | None):
            found[name] = check(options[name], inputs)
    groups = _groups_of_examples(options.get("groups"), inputs)
    if any(leaf.shape[0] > 1 for leaf in jax.tree.leaves(groups)):
        found["groups"] = groups
    spans = np.shape(options.get("spans", 0))
    if len(spans) == 3:
        if spans[0] not in (1, batch):
            raise ValueError(f"spans must be [spans, 2] or [{batch}, spans, 2]: got {list(spans)}")
        found["spans"] = jnp.asarray(options["spans"])
    return found


def _groups_of_examples(groups: Any, inputs: Inputs) -> Any:
    """Groups in their checked form; of a method that takes a pair of inputs and of groups, such a pair."""
    pair = isinstance(groups, tuple | list) and any(side is None or isinstance(side, FeatureGroups) for side in groups)
    if pair and isinstance(inputs, tuple | list) and len(groups) == len(inputs):
        return tuple(map(_groups_of_examples, groups, inputs))
    return None if groups is None else feature_groups(groups, inputs)


def _takes_key(method: Method) -> bool:
    return "key" in _parameters(method)


def _names_by_place(method: Method) -> list[str]:
    """The arguments that may be given by place after score and inputs."""
    after = list(_parameters(method).values())[2:]
    return [each.name for each in itertools.takewhile(lambda each: each.kind is each.POSITIONAL_OR_KEYWORD, after)]


def _parameters(method: Method) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(method).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _chosen_layer(name: str, layer: int | tuple[int, ...] | None, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """The index of the chosen iteration in the stack, () for none; ValueError if it is not one of them."""
    if layer is None:
        return ()
    given = layer if isinstance(layer, tuple) else (layer,)
    if not lengths:
        raise ValueError(f"{name!r} lies outside any loop and has no layers to choose from: leave out layer={layer}")
    if len(given) != len(lengths) or any(not -n <= i < n for i, n in zip(given, lengths, strict=True)):
        raise ValueError(f"layer {layer} is out of range: {name!r} is stacked over {list(lengths)} iterations")
    return tuple(i % n for i, n in zip(given, lengths, strict=True))
