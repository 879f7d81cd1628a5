"""Combinators against closed forms, and their compositions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.attribution import deep_lift, integrated_gradients, logit
from jaxcore.attribution.ablation import feature_ablation, leave_one_span_out
from jaxcore.attribution.combinators import (
    at_layer,
    chunked,
    contrastive,
    noise_variance,
    normalised,
    over_baselines,
    smoothed,
    smoothed_square,
)
from jaxcore.attribution.expected_gradients import expected_gradients
from jaxcore.attribution.feature_groups import FeatureGroups, token_groups
from jaxcore.attribution.gradients import grad_cam, input_x_gradient, saliency
from jaxcore.attribution.interactions import similarity_pairs
from jaxcore.attribution.surrogates import kernel_shap

INPUTS = jnp.array([[1.0, -2.0, 0.5], [0.3, 1.5, -1.0]])
BASELINES = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0], [0.5, -0.5, 4.0]], np.float32)
KEY = jax.random.key(0)


def cubes(x):
    return jnp.sum(x**3, axis=1)


def captum_tunnel(kind, samples):
    captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    tunnel = captum.NoiseTunnel(captum.Saliency(lambda x: x.pow(3).sum(1)))
    inputs = torch.tensor(np.asarray(INPUTS))
    return tunnel.attribute(inputs, kind, nt_samples=samples, stdevs=0.5, abs=False).numpy()


def test_noise_statistics_of_a_gradient():
    """g = 3 (x + e)^2, e ~ N(0, s^2): mean 3 (x^2 + s^2), variance 9 (4 x^2 s^2 + 2 s^4)."""
    options = {"noise_scale": 0.5, "num_samples": 40_000, "chunk_size": 10_000}
    mean = 3 * (INPUTS**2 + 0.25)
    variance = 9 * (4 * INPUTS**2 * 0.25 + 2 * 0.5**4)
    bound = 5 * np.sqrt(variance / 40_000)  # standard errors of the mean
    assert bool(jnp.all(jnp.abs(smoothed(saliency, **options)(cubes, INPUTS, KEY) - mean) < bound))
    np.testing.assert_allclose(noise_variance(saliency, **options)(cubes, INPUTS, KEY), variance, rtol=0.1)
    square = smoothed_square(saliency, **options)(cubes, INPUTS, KEY)
    np.testing.assert_allclose(square, variance + mean**2, rtol=0.05)
    assert bool(jnp.all(np.abs(captum_tunnel("smoothgrad", 40_000) - mean) < bound))
    np.testing.assert_allclose(captum_tunnel("vargrad", 40_000), variance, rtol=0.1)
    np.testing.assert_allclose(captum_tunnel("smoothgrad_sq", 40_000), variance + mean**2, rtol=0.05)


def test_a_small_variance_beside_a_large_mean_keeps_its_digits():
    score = lambda x: 1000 * x[:, 0] + 0.5e-3 * x[:, 0] ** 2  # noqa: E731
    with jax.enable_x64(True):
        method = noise_variance(saliency, noise_scale=1.0, num_samples=2000, chunk_size=2000)
        exact = method(score, jnp.zeros((1, 1)), KEY)
    values = method(score, jnp.zeros((1, 1)), KEY)  # gradient 1000 + 1e-3 e: float32 resolves 6e-5
    np.testing.assert_allclose(values, exact, rtol=0.15)
    np.testing.assert_allclose(values, 1e-6, rtol=0.2)


def test_noise_of_a_scale_per_leaf():
    inputs = {"quiet": INPUTS, "noisy": INPUTS}
    score = lambda x: cubes(x["quiet"]) + cubes(x["noisy"])  # noqa: E731
    method = noise_variance(saliency, noise_scale={"quiet": 0.0, "noisy": 1.0}, num_samples=8)
    values = method(score, inputs, KEY)
    np.testing.assert_array_equal(values["quiet"], 0)
    assert float(values["noisy"].min()) > 0


def test_the_mean_over_baselines():
    method = over_baselines(input_x_gradient, BASELINES, chunk_size=2)
    expected = np.mean([3 * INPUTS**2 * (INPUTS - b) for b in BASELINES], axis=0)
    np.testing.assert_allclose(method(cubes, INPUTS), expected, rtol=1e-5)
    batch = jnp.stack([0 * INPUTS, INPUTS])  # baselines of a whole batch each
    values = over_baselines(input_x_gradient, batch)(cubes, INPUTS)
    np.testing.assert_allclose(values, 1.5 * INPUTS**3, rtol=1e-5)


def test_normalised_has_unit_mass_and_keeps_signs():
    inputs = {"a": INPUTS, "b": jnp.array([[[2.0]], [[-1.0]]])}
    score = lambda x: cubes(x["a"]) + x["b"][:, 0, 0]  # noqa: E731
    raw = input_x_gradient(score, inputs)
    values = normalised(input_x_gradient)(score, inputs)
    mass = np.abs(raw["a"]).sum(1) + np.abs(raw["b"]).sum((1, 2))
    np.testing.assert_allclose(values["a"], raw["a"] / mass[:, None], rtol=1e-5)
    np.testing.assert_allclose(values["b"], raw["b"] / mass[:, None, None], rtol=1e-5)
    np.testing.assert_array_equal(normalised(input_x_gradient)(cubes, jnp.zeros((2, 3))), 0)


def test_combinators_compose_under_jit():
    """Smoothing a mean over baselines (each level finds its own chunk), with and without jit; the levels commute."""
    method = normalised(smoothed(over_baselines(integrated_gradients, BASELINES), noise_scale=0.2, num_samples=6))
    run = functools.partial(method, cubes, num_steps=3)
    values = run(INPUTS, KEY)
    np.testing.assert_allclose(np.abs(values).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(run)(INPUTS, KEY), values, rtol=1e-5)
    swapped = over_baselines(
        smoothed(integrated_gradients, noise_scale=0.2, num_samples=6, chunk_size=6), BASELINES, chunk_size=3
    )
    np.testing.assert_allclose(
        normalised(swapped)(cubes, INPUTS, KEY, num_steps=3, chunk_size=3), values, rtol=1e-4, atol=1e-6
    )


def test_a_random_method_gets_a_key_of_its_own_in_every_sample():
    seen = lambda score, inputs, key: jnp.broadcast_to(jax.random.normal(key), inputs.shape)  # noqa: E731
    spread = noise_variance(seen, noise_scale=0.0, num_samples=500, chunk_size=500)(cubes, INPUTS, KEY)
    np.testing.assert_allclose(spread, 1, rtol=0.3)
    inner = smoothed(seen, noise_scale=0.0, num_samples=4, chunk_size=4)
    nested = smoothed_square(inner, noise_scale=0.0, num_samples=500, chunk_size=500)
    np.testing.assert_allclose(nested(cubes, INPUTS, KEY), 0.25, rtol=0.3)
    method = smoothed(expected_gradients, noise_scale=0.1, num_samples=4)
    assert method(cubes, INPUTS, KEY, baselines=BASELINES, num_samples=3).shape == INPUTS.shape


def test_smoothing_a_layer_method_on_a_sharded_batch():
    inputs = jax.random.normal(KEY, (8, 4, 4, 2))
    score = lambda x: jnp.sum(checkpoint_name(jnp.tanh(x), "h") ** 3, axis=(1, 2, 3))  # noqa: E731
    method = smoothed(functools.partial(grad_cam, name="h"), noise_scale=0.1, num_samples=3, chunk_size=2)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(inputs, jax.NamedSharding(mesh, jax.P("data")))
    values = jax.jit(functools.partial(method, score))(sharded, KEY)
    np.testing.assert_allclose(values, method(score, inputs, KEY), rtol=1e-4, atol=1e-6)


WEIGHTS = jax.random.normal(jax.random.key(1), (3, 3, 3)) / 2


def scanned(x):
    def layer(h, weights):
        return checkpoint_name(jnp.tanh(h @ weights) + h, "h"), None

    return cubes(jax.lax.scan(layer, x, WEIGHTS)[0])


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_layer_of_a_scan_is_the_rest_of_the_loop_from_there(layer):
    def before(x, stop):
        for weights in WEIGHTS[:stop]:
            x = jnp.tanh(x @ weights) + x
        return x

    def after(h):
        for weights in WEIGHTS[layer % 3 + 1 :]:
            h = jnp.tanh(h @ weights) + h
        return cubes(h)

    activation, score = at_layer(scanned, INPUTS, "h", layer=layer)
    np.testing.assert_allclose(activation, before(INPUTS, layer % 3 + 1), rtol=1e-5)
    np.testing.assert_allclose(score(activation), scanned(INPUTS), rtol=1e-5)
    values = integrated_gradients(score, activation, num_steps=5, chunk_size=2)
    expected = integrated_gradients(after, activation, num_steps=5, chunk_size=5)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-5)


def test_what_flows_around_the_layer_stays():
    score = lambda x: cubes(checkpoint_name(2 * x, "h")) + 100 * x[:, 0]  # noqa: E731
    activation, inner = jax.jit(lambda x: at_layer(score, x, "h")[0])(INPUTS), at_layer(score, INPUTS, "h")[1]
    np.testing.assert_allclose(activation, 2 * INPUTS)
    np.testing.assert_allclose(inner(jnp.zeros((2, 3))), 100 * INPUTS[:, 0])
    np.testing.assert_allclose(saliency(inner, activation), 12 * INPUTS**2, rtol=1e-6)


def test_all_times_of_a_recurrence_at_once():
    """h_t = tanh(x_t + h_{t-1}) named on its way to the readout: the score is sum_t t h_t^2."""
    sequences = jax.random.normal(KEY, (2, 5, 3))

    def score(x):
        def cell(h, x_t):
            h = jnp.tanh(x_t + h)
            return h, checkpoint_name(h, "h")

        states = jax.lax.scan(cell, jnp.zeros((2, 3)), jnp.moveaxis(x, 1, 0))[1]
        return jnp.einsum("tbd,t->b", states**2, jnp.arange(5.0))

    activation, inner = at_layer(score, sequences, "h", batch_axis=1)
    assert activation.shape == (2, 5, 3)
    times = jnp.arange(5.0)[None, :, None]
    np.testing.assert_allclose(saliency(inner, activation), 2 * times * activation, rtol=1e-5)
    one, at_time = at_layer(score, sequences, "h", layer=2)
    np.testing.assert_allclose(one, activation[:, 2], rtol=1e-6)
    np.testing.assert_allclose(saliency(at_time, one), 4 * one, rtol=1e-5)


def test_nested_loops_take_an_index_each():
    def score(x):
        inner = lambda h, weights: (checkpoint_name(h @ weights, "h"), None)  # noqa: E731
        outer = lambda h, _: (jax.lax.scan(inner, h, WEIGHTS)[0], None)  # noqa: E731
        return cubes(jax.lax.scan(outer, x, None, length=2)[0])

    activation, inner = at_layer(score, INPUTS, "h", layer=(1, 0))
    np.testing.assert_allclose(activation, INPUTS @ WEIGHTS[0] @ WEIGHTS[1] @ WEIGHTS[2] @ WEIGHTS[0], rtol=1e-4)
    np.testing.assert_allclose(inner(jnp.ones((2, 3))), cubes(jnp.ones((2, 3)) @ WEIGHTS[1] @ WEIGHTS[2]), rtol=1e-4)


def test_bad_input_is_named():
    outside = lambda x: cubes(checkpoint_name(x, "h"))  # noqa: E731
    for score, options, message in [
        (scanned, {}, r"stacked to \[3, 2, 3\]: choose layer= \(0 to 2\)"),
        (scanned, {"layer": 3}, r"layer 3 is out of range: 'h' is stacked over \[3\] iterations"),
        (scanned, {"layer": (0, 1)}, "out of range"),
        (scanned, {"layer": 0, "batch_axis": 1}, "has no batch of 2 at axis 1"),
        (outside, {"layer": 0}, "lies outside any loop"),
        (lambda x: cubes(checkpoint_name(x.T, "h").T), {}, r"of shape \[3, 2\] has no batch of 2 at axis 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            at_layer(score, INPUTS, "h", **options)
    with pytest.raises(ValueError, match="leave the option `baseline` out"):
        over_baselines(input_x_gradient, BASELINES)(cubes, INPUTS, baseline=0.0)
    with pytest.raises(ValueError, match="does not broadcast"):
        over_baselines(input_x_gradient, BASELINES[:, :2])(cubes, INPUTS)
    with pytest.raises(ValueError, match=r"baselines must be arrays .* got \[0\]"):
        over_baselines(input_x_gradient, 0.0)
    with pytest.raises(ValueError, match="noise_scale is a standard deviation"):
        smoothed(saliency, noise_scale=-0.1)(cubes, INPUTS, KEY)
    with pytest.raises(ValueError, match="noise_scale of shape"):
        smoothed(saliency, noise_scale=jnp.ones(7))(cubes, INPUTS, KEY)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        noise_variance(saliency, noise_scale=1.0, num_samples=0)
    for build in (
        lambda: smoothed(saliency, noise_scale=1.0, num_samples=2.5),
        lambda: over_baselines(saliency, BASELINES, chunk_size=2.5),
        lambda: chunked(saliency, chunk_size=2.5),
    ):
        with pytest.raises(ValueError, match=r"must be a whole number: got 2\.5"):
            build()


def three_classes(x):
    return jnp.stack([jnp.sum(x**2, 1), jnp.prod(x, 1), jnp.sin(x[:, 0])], axis=1)


def test_a_contrast_of_a_linear_method_is_the_difference_of_both_attributions():
    target, versus = jnp.array([0, 2]), jnp.array([1, 0])
    both = [saliency(logit(three_classes, classes), INPUTS) for classes in (target, versus)]
    found = contrastive(saliency)(three_classes, INPUTS, target=target, versus=versus)
    np.testing.assert_allclose(found, both[0] - both[1], rtol=1e-6)
    runner_up = jnp.argmax(three_classes(INPUTS).at[:, 0].set(-jnp.inf), axis=1)
    strongest = contrastive(saliency)(three_classes, INPUTS, target=0)
    np.testing.assert_allclose(strongest, contrastive(saliency)(three_classes, INPUTS, target=0, versus=runner_up))
    whole = contrastive(integrated_gradients)(three_classes, INPUTS, target=0, versus=1, num_steps=8, chunk_size=8)
    np.testing.assert_allclose(jnp.sum(whole, 1), three_classes(INPUTS)[:, 0] - three_classes(INPUTS)[:, 1], rtol=1e-4)
    with pytest.raises(ValueError, match="versus 3 is out of range"):
        contrastive(saliency)(three_classes, INPUTS, target=0, versus=3)


MANY = jax.random.normal(jax.random.key(5), (7, 3))
REAL = jnp.arange(3) < jnp.array([3, 1, 2, 3, 2, 1, 3])[:, None]


def of_real(x, mask):
    return jnp.tanh(jnp.sum(x * mask, axis=1)) ** 2 + jnp.sum(jnp.sin(x) * mask, axis=1)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (saliency, {}),
        (deep_lift, {"baseline": 0.2 * MANY}),
        (integrated_gradients, {"baseline": jnp.ones(3), "num_steps": 8, "chunk_size": 4}),
    ],
)
@pytest.mark.parametrize("chunk_size", [1, 3, 7])
def test_examples_in_chunks_are_the_batch(method, options, chunk_size):
    expected = method(lambda x: of_real(x, REAL), MANY, **options)
    found = chunked(method, context=REAL, chunk_size=chunk_size)(of_real, MANY, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_random_methods_draw_for_each_example_whatever_the_chunk():
    method = smoothed(saliency, noise_scale=0.3, num_samples=4, chunk_size=4)
    same = jnp.broadcast_to(MANY[:1], MANY.shape)
    found = [chunked(method, chunk_size=size)(cubes, same, KEY) for size in (2, 7)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    assert np.unique(np.asarray(found[0])[:, 0]).size == 7
    np.testing.assert_array_equal(chunked(method, chunk_size=2)(cubes, same, key=KEY), found[0])
    # All subsets of three features: nothing is left to chance.
    shap = chunked(kernel_shap, chunk_size=3)(cubes, MANY, KEY, num_samples=6)
    np.testing.assert_allclose(shap, MANY**3, atol=1e-4)


def plain(x):
    return jnp.tanh(jnp.sum(x, axis=1)) ** 2 + x[:, 0] * x[:, 1]


SIX = MANY[:6]
OWN_GROUPS = np.array([[0, 0, 1], [0, 1, 2], [1, 0, -1], [2, 1, 0], [0, -1, 0], [0, 1, 1]])


@pytest.mark.parametrize(
    "groups",
    [OWN_GROUPS, FeatureGroups(OWN_GROUPS, 4), np.array([0, 1, 0])],
    ids=["one per example", "with their count", "one example's"],
)
def test_groups_are_taken_apart_with_the_examples(groups):
    options = {"groups": groups, "baseline": 0.3, "chunk_size": 2}
    expected = feature_ablation(plain, SIX, **options)
    found = chunked(feature_ablation, chunk_size=3)(plain, SIX, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_groups_of_a_pair_may_be_shared_on_one_side():
    pair = {"left": SIX, "right": jnp.sin(SIX)[:, :, None]}
    score = lambda x: plain(x["left"]) * jnp.cos(plain(x["right"][:, :, 0]))  # noqa: E731
    groups = {"left": OWN_GROUPS, "right": np.array([[3], [-1], [4]])}
    expected = feature_ablation(score, pair, groups=groups, chunk_size=5)
    found = chunked(feature_ablation, chunk_size=3)(score, pair, groups=groups, chunk_size=5)
    for name in pair:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_spans_are_taken_apart_by_name_and_by_place():
    own = np.stack([np.array([[0, 1], [1, 3]]) if row % 2 else np.array([[1, 2], [0, 0]]) for row in range(6)])
    options = {"groups": OWN_GROUPS, "chunk_size": 2}
    method = chunked(leave_one_span_out, chunk_size=3)
    for spans in (own, own[1:2]):
        expected = leave_one_span_out(plain, SIX, spans, **options)
        for found in (method(plain, SIX, spans, **options), method(plain, SIX, spans=spans, **options)):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="spans"):
        method(plain, SIX, own, spans=own, **options)
    with pytest.raises(ValueError, match=r"spans must be \[spans, 2\] or \[6, spans, 2\]: got \[5, 2, 2\]"):
        method(plain, SIX, own[:5], **options)


def test_what_all_examples_share_stays_whole():
    """Also where its length happens to be the batch's: three examples of three features, three spans."""
    spans, groups, seen = np.array([[0, 1], [1, 2], [0, 2]]), np.array([0, 0, 1]), []

    def spy(score, inputs, spans, *, groups, baseline, steps):
        seen.append((spans, groups, baseline, steps))
        return inputs

    chunked(spy, chunk_size=1)(plain, MANY[:3], spans, groups=groups, baseline=0.5, steps=(1, 2, 3))
    for found in seen:
        assert found[0] is spans and found[1] is groups and found[2:] == (0.5, (1, 2, 3))
    expected = leave_one_span_out(plain, MANY[:3], spans, groups=groups, chunk_size=3)
    found = chunked(leave_one_span_out, chunk_size=1)(plain, MANY[:3], spans, groups=groups, chunk_size=3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_noise_of_a_scale_per_example():
    def echo(score, inputs, *, noise_scale):
        return noise_scale * jnp.ones_like(inputs)

    scale = jnp.arange(7.0)[:, None]
    found = chunked(echo, chunk_size=7)(plain, MANY, noise_scale=scale)
    np.testing.assert_array_equal(found, jnp.broadcast_to(scale, MANY.shape))


def test_groups_of_both_inputs_of_a_pair_method():
    texts = jax.random.normal(KEY, (4, 2, 1)), jax.random.normal(jax.random.key(1), (4, 3, 1))
    groups = token_groups(np.array([[1, 1], [1, 0], [0, 1], [1, 1]])), None
    encoders = (lambda x: jnp.tanh(jnp.sum(x, axis=1)), lambda x: jnp.sin(jnp.sum(x, axis=1)))
    options = {"groups": groups, "num_steps": 2, "chunk_size": 3}
    expected = similarity_pairs(encoders, texts, **options)
    found = chunked(similarity_pairs, chunk_size=2)(encoders, texts, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_chunk_needs_less_memory_than_the_batch():
    weights = jax.random.normal(KEY, (3, 4096))

    def temporary(chunk_size):
        method = chunked(input_x_gradient, chunk_size=chunk_size)
        run = jax.jit(lambda x: method(lambda x: jnp.sum(jnp.tanh(jnp.sin(x @ weights)), axis=1), x))
        return run.lower(jnp.zeros((64, 3))).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4) < temporary(64) / 4


def test_chunks_refuse_what_they_cannot_cut():
    with pytest.raises(ValueError, match=r"context must hold arrays \[7, ...\]: got \(2, 3\)"):
        chunked(saliency, context=REAL[:2])(of_real, MANY)
    with pytest.raises(ValueError, match=r"groups of shape \(5, 3\) do not broadcast against inputs of shape \(7, 3\)"):
        chunked(feature_ablation)(plain, MANY, groups=OWN_GROUPS[:5])
    with pytest.raises(ValueError, match=r"one number per example, \[1\]: got shape \(7,\)"):
        chunked(saliency, chunk_size=1)(lambda x: of_real(x, REAL), MANY)
    with pytest.raises(ValueError, match=r"chunked met values that are not finite in 1 of 2 examples \(rows 1\)"):
        chunked(saliency, chunk_size=1)(lambda x: jnp.log(x[:, 0]), jnp.array([[1.0], [0.0]]))
