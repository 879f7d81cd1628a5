"""Every method that Captum has too, in float64, on an MLP, a CNN with pooling and a residual, a BiLSTM, and BERT.

Deterministic methods agree to 1e-6, random ones in their means, within the standard error. Where a method is missing
for a model, Captum has none that means the same: its DeepLIFT knows no rule for softmax, products and norms (ours is
told to take their gradient, too), its LRP none for what is not a module, guided backpropagation only rectifiers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.attribution import (
    Epsilon,
    activation_gradient,
    at_layer,
    deconvnet,
    deep_lift,
    deep_shap,
    exact_shapley,
    expected_gradients,
    feature_ablation,
    feature_permutation,
    grad_cam,
    guided_backpropagation,
    input_x_gradient,
    integrated_gradients,
    internal_influence,
    kernel_shap,
    layer_conductance,
    layer_conductance_by_differences,
    layer_value,
    lime,
    lrp,
    noise_variance,
    occlusion,
    saliency,
    smoothed,
    smoothed_square,
)

captum = pytest.importorskip("captum.attr", reason="the torch extra is not installed")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
ALL, TEXT = ("mlp", "cnn", "bilstm", "bert"), ("bilstm", "bert")
STANDARD_ERRORS = 5
_PLAIN = ("exp", "div", "mul", "erf", "rsqrt", "square", "integer_pow")
CAPTUM_RULES = {"product_rule": "gradient", "rules": dict.fromkeys(_PLAIN, "gradient")}
"""What Captum's DeepLIFT does with all that is not a module of torch.nn: the ordinary gradient."""


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def theirs(peer, twin, *arguments, target=1, **options):
    """Captum's attributions of class 1 as an array; arrays among the arguments become tensors."""
    to_tensor = lambda value: torch.tensor(value) if isinstance(value, np.ndarray) else value  # noqa: E731
    if twin.extra:
        options["additional_forward_args"] = twin.extra
    if target is not None:
        options["target"] = target
    inputs, *rest = (to_tensor(value) for value in arguments)
    found = peer.attribute(inputs, *rest, **{name: to_tensor(value) for name, value in options.items()})
    return found.detach().numpy()


def ours(method, *arguments, **options):
    return np.asarray(jax.jit(lambda first: method(arguments[0], first, *arguments[2:], **options))(arguments[1]))


def features(twin):
    """The groups for Captum, which must number padding too: as the last feature, which changes nothing there."""
    return np.where(twin.groups < 0, 3, twin.groups)


def close(values, expected):
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(values, expected, **TOLERANCE)


@pytest.mark.parametrize("name", ALL)
def test_gradients(twins, name):
    twin = twins(name)
    close(ours(saliency, twin.score, twin.inputs), theirs(captum.Saliency(twin.module), twin, twin.inputs, abs=False))
    close(
        ours(input_x_gradient, twin.score, twin.inputs), theirs(captum.InputXGradient(twin.module), twin, twin.inputs)
    )
    expected = theirs(captum.IntegratedGradients(twin.module), twin, twin.inputs, twin.baseline, n_steps=9)
    options = {"baseline": twin.baseline, "num_steps": 9, "chunk_size": 9}
    close(ours(integrated_gradients, twin.score, twin.inputs, **options), expected)


@pytest.mark.parametrize(
    ("quadrature", "peer"),
    [
        ("midpoint", "riemann_middle"),
        ("left", "riemann_left"),
        ("right", "riemann_right"),
        ("trapezoid", "riemann_trapezoid"),
    ],
)
def test_quadratures(twins, quadrature, peer):
    """Captum's trapezoid gives n nodes the weights of n intervals, which sum to (n - 1) / n; ours sum to 1."""
    twin = twins("mlp")
    expected = theirs(captum.IntegratedGradients(twin.module), twin, twin.inputs, twin.baseline, n_steps=9, method=peer)
    options = {"baseline": twin.baseline, "num_steps": 9, "quadrature": quadrature, "chunk_size": 9}
    values = ours(integrated_gradients, twin.score, twin.inputs, **options)
    close((8 / 9 if quadrature == "trapezoid" else 1) * values, expected)


def test_integrated_gradients_of_several_inputs(twins):
    first, second = twins("mlp"), twins("cnn")
    expected = captum.IntegratedGradients(lambda v, i: first.module(v)[:, 1] * second.module(i)[:, 1]).attribute(
        (torch.tensor(first.inputs), torch.tensor(second.inputs)), n_steps=10
    )
    score = lambda x: first.score(x["vector"]) * second.score(x["image"])  # noqa: E731
    inputs = {"image": second.inputs, "vector": first.inputs}
    values = jax.jit(lambda x: integrated_gradients(score, x, num_steps=10, chunk_size=10))(inputs)
    close(values["vector"], expected[0].numpy())
    close(values["image"], expected[1].numpy())


@pytest.mark.parametrize("name", ALL)
def test_leaving_out(twins, name):
    """Ablation of features, occlusion by windows, permutation over the two examples: each takes the other's."""
    twin = twins(name)
    mask = features(twin)
    expected = theirs(captum.FeatureAblation(twin.module), twin, twin.inputs, twin.baseline, feature_mask=mask)
    options = {"baseline": twin.baseline, "chunk_size": 4}
    close(ours(feature_ablation, twin.score, twin.inputs, groups=twin.groups, **options), expected)
    expected = theirs(captum.Occlusion(twin.module), twin, twin.inputs, twin.window, baselines=twin.baseline)
    close(ours(occlusion, twin.score, twin.inputs, windows=twin.window, **options), expected)
    expected = theirs(captum.FeaturePermutation(twin.module), twin, twin.inputs, feature_mask=mask[:1])
    values = ours(feature_permutation, twin.score, twin.inputs, jax.random.key(0), groups=twin.groups, chunk_size=4)
    shared = np.broadcast_to(
        (twin.groups >= 0).all(axis=0) & (twin.groups[:1] < 3 if twin.extra else True), values.shape
    )
    close(values[shared], expected[shared])


@pytest.mark.parametrize("name", ALL)
def test_shapley_values(twins, name):
    """Captum enumerates orders; KernelSHAP of all subsets is exact; Captum's samplers agree in their means."""
    twin = twins(name)
    options = {"baseline": twin.baseline, "groups": twin.groups, "chunk_size": 16}
    exact = ours(exact_shapley, twin.score, twin.inputs, **options)
    given = {"feature_mask": features(twin), "perturbations_per_eval": 24}
    close(exact, theirs(captum.ShapleyValues(twin.module), twin, twin.inputs, twin.baseline, **given))
    close(ours(kernel_shap, twin.score, twin.inputs, jax.random.key(0), num_samples=14, **options), exact)
    torch.manual_seed(0)
    for method, count in ((captum.KernelShap(twin.module), 100), (captum.ShapleyValueSampling(twin.module), 12)):
        runs = [theirs(method, twin, twin.inputs, twin.baseline, n_samples=count, **given) for _ in range(16)]
        agree(np.stack(runs), exact[None])


def agree(first, second):
    """The means of two sets of runs, within the standard error of their difference; one run is exact."""
    errors = [runs.var(axis=0, ddof=1) / len(runs) if len(runs) > 1 else 0 for runs in (first, second)]
    bound = STANDARD_ERRORS * np.sqrt(errors[0] + errors[1])
    assert np.all(bound < 0.6 * np.abs(second.mean(0)).max())  # runs enough to tell right from wrong
    assert np.all(np.abs(first.mean(0) - second.mean(0)) < bound + 1e-6)


def repeated(method, twin, count, **options):
    """Our random method with `count` keys, in one program."""
    keys = jax.random.split(jax.random.key(0), count)
    run = jax.jit(lambda x: jax.lax.map(lambda key: method(twin.score, x, key, **options), keys, batch_size=20))
    return np.asarray(run(twin.inputs))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_random_gradients(twins, name):
    """Expected gradients, SmoothGrad, its square and VarGrad."""
    twin = twins(name)
    torch.manual_seed(0)
    np.random.seed(0)
    baselines = np.random.default_rng(5).standard_normal((3, *twin.inputs.shape[1:]))
    method = captum.GradientShap(twin.module)
    runs = np.stack([theirs(method, twin, twin.inputs, baselines, n_samples=25) for _ in range(40)])
    agree(repeated(expected_gradients, twin, 40, baselines=baselines, num_samples=25, chunk_size=25), runs)
    tunnel = captum.NoiseTunnel(captum.Saliency(twin.module))
    for combinator, kind in ((smoothed, "smoothgrad"), (smoothed_square, "smoothgrad_sq"), (noise_variance, "vargrad")):
        options = {"nt_type": kind, "nt_samples": 25, "stdevs": 0.2, "abs": False}
        runs = np.stack([theirs(tunnel, twin, twin.inputs, **options) for _ in range(40)])
        agree(repeated(combinator(saliency, noise_scale=0.2, num_samples=25, chunk_size=25), twin, 40), runs)


@pytest.mark.parametrize("name", ALL)
def test_lime(twins, name):
    twin = twins(name)
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr._core.lime import Lime, get_exp_kernel_similarity_function

    torch.manual_seed(0)
    method = Lime(twin.module, SkLearnRidge(alpha=1.0), get_exp_kernel_similarity_function("cosine", 0.5))
    options = {"feature_mask": features(twin), "n_samples": 60, "perturbations_per_eval": 60}
    runs = np.stack([theirs(method, twin, twin.inputs, twin.baseline, **options) for _ in range(16)])
    given = {"baseline": twin.baseline, "groups": twin.groups, "num_samples": 60, "kernel_width": 0.5, "chunk_size": 60}
    agree(repeated(lime, twin, 100, **given), runs)


@pytest.mark.parametrize("name", ALL)
def test_deep_lift(twins, name):
    twin = twins(name)
    rules = CAPTUM_RULES if name in TEXT else {}
    expected = theirs(captum.DeepLift(twin.module), twin, twin.inputs, twin.baseline)
    close(ours(deep_lift, twin.score, twin.inputs, baseline=twin.baseline, **rules), expected)
    if rules:  # the rules of the products, softmax and norms are what completes it
        full = ours(deep_lift, twin.score, twin.inputs, baseline=twin.baseline)
        change = np.asarray(twin.score(jnp.asarray(twin.inputs)) - twin.score(jnp.asarray(twin.baseline)))
        np.testing.assert_allclose(full.sum(axis=(1, 2)), change, atol=1e-9)
        assert np.abs(expected.sum(axis=(1, 2)) - change).max() > 1e-3
    else:
        baselines = np.random.default_rng(5).standard_normal((3, *twin.inputs.shape[1:]))
        expected = theirs(captum.DeepLiftShap(twin.module), twin, twin.inputs, baselines)
        close(ours(deep_shap, twin.score, twin.inputs, baselines=baselines, chunk_size=3), expected)


def test_rectifiers_and_relevance_of_the_cnn(twins):
    twin = twins("cnn")
    for method, peer in ((guided_backpropagation, captum.GuidedBackprop), (deconvnet, captum.Deconvolution)):
        close(ours(method, twin.score, twin.inputs), theirs(peer(twin.module), twin, twin.inputs))
    from captum.attr._utils.lrp_rules import EpsilonRule

    for module in (twin.module.largest, twin.module.mean, twin.module.add):
        module.rule = EpsilonRule(1e-9)
    for module in (twin.module.first, twin.module.second, twin.module.head):
        module.rule = EpsilonRule(1e-9)
    close(ours(lrp, twin.score, twin.inputs, linear=Epsilon(1e-9)), theirs(captum.LRP(twin.module), twin, twin.inputs))


def test_grad_cam(twins):
    twin = twins("cnn")
    expected = theirs(captum.LayerGradCam(twin.module, twin.layer), twin, twin.inputs, relu_attributions=True)
    values = ours(grad_cam, twin.score, twin.inputs, "features", spatial_axes=(2, 3), channel_axis=1)
    assert 0.05 < np.mean(values > 0) < 0.99  # both sides of the relu
    close(values, expected[:, 0])


def at_twin_layer(twin, inputs):
    return at_layer(twin.score, inputs, twin.name, layer=twin.loop)


def with_layer(twin, method):
    """A method at the twin's layer, whose baseline is the activation of the baseline."""

    def attribute(_, inputs, **options):
        activation, score = at_twin_layer(twin, inputs)
        baseline = (
            {"baseline": at_twin_layer(twin, jnp.asarray(twin.baseline))[0]} if options.pop("based", True) else {}
        )
        return method(score, activation, **baseline, **options)

    return attribute


def of_loop(twin, values):
    return values if twin.loop is None else values[twin.loop]


@pytest.mark.parametrize("name", ALL)
def test_layers_by_gradient(twins, name):
    """Activation, gradient x activation, integrated gradients, internal influence and conductance of a layer."""
    twin = twins(name)
    activation, gradient = jax.jit(lambda x: activation_gradient(twin.score, x, twin.name))(twin.inputs)
    activation, gradient = of_loop(twin, activation), of_loop(twin, gradient)
    close(activation, theirs(captum.LayerActivation(twin.module, twin.layer), twin, twin.inputs, target=None))
    close(activation * gradient, theirs(captum.LayerGradientXActivation(twin.module, twin.layer), twin, twin.inputs))
    method = with_layer(twin, input_x_gradient)
    close(ours(method, None, twin.inputs, based=False), activation * gradient)
    ends = twin.inputs, twin.baseline
    expected = theirs(captum.LayerIntegratedGradients(twin.module, twin.layer), twin, *ends, n_steps=8)
    close(ours(with_layer(twin, integrated_gradients), None, twin.inputs, num_steps=8, chunk_size=8), expected)
    options = {"baseline": twin.baseline, "num_steps": 8, "chunk_size": 8}
    expected = theirs(captum.InternalInfluence(twin.module, twin.layer), twin, *ends, n_steps=8)
    close(of_loop(twin, ours(internal_influence, twin.score, twin.inputs, twin.name, **options)), expected)
    options["quadrature"], peer = (
        ("gauss_legendre", "gausslegendre") if name == "mlp" else ("midpoint", "riemann_middle")
    )
    expected = theirs(captum.LayerConductance(twin.module, twin.layer), twin, *ends, n_steps=8, method=peer)
    values = ours(layer_conductance_by_differences, twin.score, twin.inputs, twin.name, **options)
    close(of_loop(twin, values), expected)


def test_conductance_is_the_limit_of_captums(twins):
    """Captum's estimate has an error c / n: two of them extrapolate to the integral, which 20 nodes give exactly."""
    twin = twins("mlp")
    method, ends = captum.LayerConductance(twin.module, twin.layer), (twin.inputs, twin.baseline)
    coarse, fine = (theirs(method, twin, *ends, n_steps=n, method="riemann_trapezoid") for n in (2000, 4000))
    options = {"baseline": twin.baseline, "num_steps": 20, "chunk_size": 20}
    close(ours(layer_conductance, twin.score, twin.inputs, "hidden", **options), 2 * fine - coarse)


@pytest.mark.parametrize("name", ("mlp", "cnn"))
def test_layers_by_other_methods(twins, name):
    """Any method at a layer is the method itself: DeepLIFT, ablation, relevance."""
    twin = twins(name)
    ends = twin.inputs, twin.baseline
    expected = theirs(captum.LayerDeepLift(twin.module, twin.layer), twin, *ends)
    close(ours(with_layer(twin, deep_lift), None, twin.inputs), expected)
    width = expected[0].size
    ids = (np.arange(width) % 3).reshape(1, *expected.shape[1:])
    peer = captum.LayerFeatureAblation(twin.module, twin.layer)
    expected = theirs(peer, twin, twin.inputs, layer_baselines=0.0, layer_mask=ids)
    close(ours(with_layer(twin, feature_ablation), None, twin.inputs, based=False, groups=ids, chunk_size=3), expected)


def test_neurons(twins):
    """The value of an inner unit as the score: Captum's neuron methods."""
    twin = twins("mlp")
    score = layer_value(twin.score, "hidden", lambda h: h[:, 2])
    options = {"neuron_selector": 2, "target": None}
    peers = captum.NeuronGradient, captum.NeuronIntegratedGradients, captum.NeuronDeepLift, captum.NeuronFeatureAblation
    gradient, integrated, lifted, ablated = (peer(twin.module, twin.layer) for peer in peers)
    close(ours(saliency, score, twin.inputs), theirs(gradient, twin, twin.inputs, **options))
    baseline = {"baselines": twin.baseline}
    values = ours(integrated_gradients, score, twin.inputs, baseline=twin.baseline, num_steps=9, chunk_size=9)
    close(values, theirs(integrated, twin, twin.inputs, n_steps=9, **baseline, **options))
    close(
        ours(deep_lift, score, twin.inputs, baseline=twin.baseline),
        theirs(lifted, twin, twin.inputs, **baseline, **options),
    )
    close(
        ours(feature_ablation, score, twin.inputs, baseline=twin.baseline, chunk_size=6),
        theirs(ablated, twin, twin.inputs, **baseline, **options),
    )
