"""Methods by name against the methods themselves, on a small attention model written here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.attribution.ablation import feature_ablation, leave_one_span_out
from jaxcore.attribution.attention_flow import attention_flow
from jaxcore.attribution.combinators import noise_variance, over_baselines, smoothed
from jaxcore.attribution.deeplift import deep_lift
from jaxcore.attribution.discretised_path import discretised_integrated_gradients
from jaxcore.attribution.expected_gradients import expected_gradients
from jaxcore.attribution.feature_groups import token_groups
from jaxcore.attribution.gradients import input_x_gradient, saliency
from jaxcore.attribution.guided_path import guided_integrated_gradients
from jaxcore.attribution.integrated_gradients import integrated_gradients
from jaxcore.attribution.interactions import value_zeroing
from jaxcore.attribution.layers import layer_conductance
from jaxcore.attribution.lrp import AlphaBeta, Gamma, lrp
from jaxcore.attribution.method_names import (
    ALIASES,
    TOKEN_METHODS,
    expected_total,
    find_method,
    method_name,
    method_names,
    method_table,
    token_scores,
)
from jaxcore.attribution.paths import sequential_integrated_gradients
from jaxcore.attribution.rise import rise_over_groups
from jaxcore.attribution.shapley import exact_shapley, shapley_sampling
from jaxcore.attribution.surrogates import kernel_shap, lime
from jaxcore.attribution.token_task import token_task

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
EMBEDDINGS = jnp.asarray(RNG.normal(size=(2, 5, 4)), jnp.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
BASELINE = jnp.asarray(RNG.normal(size=4), jnp.float32)
BASELINES = jnp.asarray(RNG.normal(size=(3, 1, 4)), jnp.float32)
KEY = jax.random.key(3)
GROUPS = token_groups(MASK)
QUERY, VALUE, OUT = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((4, 4), (4, 4), (4,)))
VOCABULARY = jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32)


def weights_of(embeddings):
    logits = jnp.einsum("btd,de,bse->bts", embeddings, QUERY, embeddings)
    return jax.nn.softmax(jnp.where(MASK[:, None, :] == 1, logits, -1e30), axis=-1)


def from_weights(weights, embeddings):
    return jnp.tanh(jnp.einsum("bts,bsd,de->bte", weights, embeddings, VALUE))[:, 0] @ OUT


def score(embeddings):
    weights = checkpoint_name(weights_of(embeddings)[:, None], "attention_weights")
    return from_weights(weights[:, 0], embeddings)


def layered(embeddings):
    """Two blocks in a scan that name what they hand on, which value zeroing and conductance look for."""

    def block(x, scale):
        logits = scale * jnp.einsum("btd,de,bse->bts", x, QUERY, x)
        weights = jax.nn.softmax(jnp.where(MASK[:, None, :] == 1, logits, -1e30), axis=-1)
        weights = checkpoint_name(weights[:, None], "attention_weights")[:, 0]
        return checkpoint_name(x + jnp.tanh(weights @ (x @ VALUE)), "layer_output"), None

    return jax.lax.scan(block, embeddings, jnp.asarray([0.3, -0.2]))[0][:, 0] @ OUT


ON_HOST = ("leave_one_span_out", "guided_integrated_gradients", "attention_flow", "gradient_x_attention", "grad_sam")
LAYERED = ("layer_conductance", "value_zeroing")


def length(values):
    return jnp.sqrt(jnp.sum(jnp.square(values), axis=-1))


def gradient_of_weights():
    weights = weights_of(EMBEDDINGS)
    return weights, jax.grad(lambda w: from_weights(w, EMBEDDINGS).sum())(weights)


def noise_scale():
    spread = [np.ptp(row[mask == 1]) for row, mask in zip(np.asarray(EMBEDDINGS), MASK, strict=True)]
    return 0.15 * jnp.asarray(spread)[:, None, None]


def rollout():
    step = (weights_of(EMBEDDINGS) + np.eye(5)) / 2
    return step[:, 0]


def baselines():
    return jnp.broadcast_to(BASELINES, (3, 5, 4))


def guided_alone():
    """Each text cut to its tokens, where there is no padding that could take part in the path."""
    found = np.zeros(MASK.shape)
    for row, count in enumerate(MASK.sum(1)):
        alone = lambda x, row=row, count=count: padded_score(x, row, count)  # noqa: E731
        text = EMBEDDINGS[row : row + 1, :count]
        found[row, :count] = guided_integrated_gradients(
            alone, text, baseline=BASELINE, num_steps=7, fraction=1e-9
        ).sum(-1)[0]
    return found


def padded_score(text, row, count):
    """The score of one text's own tokens."""
    return score(jnp.zeros_like(EMBEDDINGS).at[row, :count].set(text[0]))[row : row + 1]


def of_spans():
    """The mean fall over the spans of three tokens that hold a token, cut at the ends of the text."""
    found = np.zeros(MASK.shape)
    for row, count in enumerate(MASK.sum(1)):
        spans = [[max(start, 0), min(start + 3, count)] for start in range(-2, count)]
        falls = leave_one_span_out(score, EMBEDDINGS, np.asarray(spans), groups=GROUPS, baseline=BASELINE)[row]
        for token in range(count):
            found[row, token] = np.mean([falls[n] for n, (a, b) in enumerate(spans) if a <= token < b])
            assert sum(a <= token < b for a, b in spans) == 3
    return found


REFERENCES = {
    "saliency": lambda: length(saliency(score, EMBEDDINGS)),
    "input_x_gradient": lambda: input_x_gradient(score, EMBEDDINGS, baseline=BASELINE).sum(-1),
    "smoothgrad": lambda: length(smoothed(saliency, noise_scale=noise_scale(), num_samples=6)(score, EMBEDDINGS, KEY)),
    "vargrad": lambda: noise_variance(saliency, noise_scale=noise_scale(), num_samples=6)(score, EMBEDDINGS, KEY).sum(
        -1
    ),
    "integrated_gradients": lambda: integrated_gradients(score, EMBEDDINGS, baseline=BASELINE, num_steps=7).sum(-1),
    "sequential_integrated_gradients": lambda: sequential_integrated_gradients(
        score, EMBEDDINGS, baseline=BASELINE, num_steps=7
    ).sum(-1),
    "discretised_integrated_gradients": lambda: discretised_integrated_gradients(
        score, EMBEDDINGS, vocabulary=VOCABULARY, baseline=BASELINE, num_anchors=7, num_neighbours=12
    ).sum(-1),
    "guided_integrated_gradients": lambda: guided_alone(),
    "layer_conductance": lambda: (
        layer_conductance(layered, EMBEDDINGS, "layer_output", baseline=BASELINE, num_steps=7).sum(-1).mean(0)
    ),
    "expected_gradients": lambda: expected_gradients(score, EMBEDDINGS, KEY, baselines=baselines(), num_samples=6).sum(
        -1
    ),
    "deeplift": lambda: deep_lift(score, EMBEDDINGS, baseline=BASELINE).sum(-1),
    "deeplift_reveal_cancel": lambda: deep_lift(
        score, EMBEDDINGS, baseline=BASELINE, activation_rule="reveal_cancel"
    ).sum(-1),
    "deepshap": lambda: over_baselines(deep_lift, baselines(), chunk_size=1)(score, EMBEDDINGS).sum(-1),
    "attnlrp": lambda: lrp(score, EMBEDDINGS).sum(-1),
    "cp_lrp": lambda: lrp(score, EMBEDDINGS, softmax="constant").sum(-1),
    "lrp_gamma": lambda: lrp(score, EMBEDDINGS, linear=Gamma(gamma=0.05, epsilon=1e-2)).sum(-1),
    "lrp_alpha_beta": lambda: lrp(score, EMBEDDINGS, linear=AlphaBeta(alpha=2.0, beta=1.0)).sum(-1),
    "occlusion": lambda: feature_ablation(score, EMBEDDINGS, baseline=BASELINE, groups=GROUPS)[..., 0],
    "leave_one_span_out": lambda: of_spans(),
    "lime": lambda: lime(score, EMBEDDINGS, KEY, baseline=BASELINE, groups=GROUPS, num_samples=6)[..., 0],
    "kernel_shap": lambda: kernel_shap(score, EMBEDDINGS, KEY, baseline=BASELINE, groups=GROUPS, num_samples=6)[..., 0],
    "shapley_sampling": lambda: shapley_sampling(
        score, EMBEDDINGS, KEY, baseline=BASELINE, groups=GROUPS, num_permutations=6
    )[..., 0],
    "exact_shapley": lambda: exact_shapley(score, EMBEDDINGS, baseline=BASELINE, groups=GROUPS)[..., 0],
    "rise": lambda: rise_over_groups(score, EMBEDDINGS, KEY, baseline=BASELINE, groups=GROUPS, num_samples=6)[..., 0],
    "attention": lambda: weights_of(EMBEDDINGS)[:, 0],
    "attention_rollout": rollout,
    "attention_flow": lambda: attention_flow(weights_of(EMBEDDINGS)[:, None, None], MASK),
    "gradient_x_attention": lambda: (np.prod(gradient_of_weights(), axis=0) * MASK[:, :, None]).sum(1),
    "grad_sam": lambda: (gradient_of_weights()[0] * np.maximum(gradient_of_weights()[1], 0) * MASK[:, :, None]).sum(1),
    "value_zeroing": lambda: value_zeroing(lambda: layered(EMBEDDINGS), MASK).mean(0)[:, 0],
}


def long_text(count):
    """A score, a text of so many tokens, its mask."""
    return lambda e: e[:, :, 0].sum(1), jnp.ones((1, count, 2)), np.ones((1, count))


given = functools.partial(
    token_scores,
    key=KEY,
    baseline=BASELINE,
    baselines=BASELINES,
    num_steps=7,
    num_samples=6,
    chunk_size=4,
    vocabulary=VOCABULARY,
)


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_a_name_is_its_method_reduced_to_tokens(name):
    run = lambda x: given(name, layered if name in LAYERED else score, x, MASK)  # noqa: E731
    compiled = (lambda f: f) if name in ON_HOST else jax.jit  # one program is quicker to compile than its parts
    scores = np.asarray((run if find_method(name).finish else jax.jit(run))(EMBEDDINGS))
    expected = np.asarray(compiled(REFERENCES[name])())
    np.testing.assert_allclose(scores, np.where(MASK == 1, expected, 0), atol=2e-6, rtol=1e-5)
    assert np.all(scores[1, 3:] == 0) and np.all(np.abs(scores[0]).max() > 1e-3)
    assert TOKEN_METHODS[name].is_signed or np.all(scores >= 0)


@pytest.mark.parametrize(
    "name",
    ["integrated_gradients", "deeplift", "deeplift_reveal_cancel", "deepshap", "kernel_shap", "shapley_sampling"],
)
def test_complete_methods_add_up_to_what_the_table_says(name):
    task = token_task(score, EMBEDDINGS, MASK, KEY, BASELINE, BASELINES, num_steps=30, num_samples=6, chunk_size=6)
    method = find_method(name)
    total = expected_total(method, task)
    np.testing.assert_allclose(method.compute(task).sum(1), total, atol=1e-5)
    without = [score(jnp.broadcast_to(b, EMBEDDINGS.shape)) for b in ([BASELINE] if name != "deepshap" else BASELINES)]
    np.testing.assert_allclose(total, score(EMBEDDINGS) - np.mean(without, axis=0), atol=1e-6)


def test_conductance_adds_up_to_the_change_in_every_layer():
    task = token_task(layered, EMBEDDINGS, MASK, KEY, BASELINE, num_steps=30, chunk_size=6)
    method = find_method("conductance")
    np.testing.assert_allclose(method.compute(task).sum(1), expected_total(method, task), atol=1e-5)


def test_a_guided_path_comes_close_to_the_change():
    task = token_task(score, EMBEDDINGS, MASK, KEY, BASELINE, num_steps=64)
    method = find_method("guided_ig")
    total = jax.jit(lambda: method.compute(task).sum(1))()
    np.testing.assert_allclose(total, expected_total(method, task), rtol=0.02)


def test_attention_that_pools_tokens_is_its_own_explanation():
    def pooled(embeddings):
        logits = jnp.where(MASK == 1, embeddings @ OUT, -1e30)
        weights = checkpoint_name(jax.nn.softmax(logits, axis=-1), "attention_weights")
        return jnp.einsum("bt,btd->bd", weights, embeddings)[:, 0]

    expected = jax.nn.softmax(jnp.where(MASK == 1, EMBEDDINGS @ OUT, -1e30), axis=-1)
    np.testing.assert_allclose(given("attention", pooled, EMBEDDINGS, MASK), expected, atol=1e-6)
    for name in ("attention_rollout", "attention_flow", "gradient_x_attention", "grad_sam"):
        with pytest.raises(ValueError, match="it has 'attention' alone"):
            given(name, pooled, EMBEDDINGS, MASK)


def test_relevance_adds_up_to_the_score_and_magnitudes_to_nothing():
    task = token_task(score, EMBEDDINGS, MASK, KEY, BASELINE)
    np.testing.assert_allclose(expected_total(find_method("lrp"), task), score(EMBEDDINGS), atol=1e-6)
    np.testing.assert_allclose(find_method("cp_lrp").compute(task).sum(1), score(EMBEDDINGS), atol=1e-5)
    assert expected_total(find_method("saliency"), task) is None


def test_kernel_shap_is_exact_where_samples_cover_all_subsets():
    exact = exact_shapley(score, EMBEDDINGS, baseline=BASELINE, groups=GROUPS)[..., 0]
    scores = token_scores("kernel_shap", score, EMBEDDINGS, MASK, key=KEY, baseline=BASELINE, num_samples=32)
    np.testing.assert_allclose(scores, exact, atol=1e-5)


def test_under_jit_and_without_baselines_the_one_baseline_stands_for_them():
    deepshap = jax.jit(
        lambda embeddings: token_scores(
            "deepshap", score, embeddings, jnp.asarray(MASK), key=KEY, baseline=BASELINE, chunk_size=1
        )
    )
    np.testing.assert_allclose(
        deepshap(EMBEDDINGS), token_scores("deeplift", score, EMBEDDINGS, MASK, key=KEY, baseline=BASELINE), atol=1e-6
    )


def test_names_aliases_and_their_listing():
    assert method_names(["LRP", "integrated-gradients ", "ig", "", "rollout"]) == (
        "attnlrp", "integrated_gradients", "attention_rollout",
    )  # fmt: skip
    assert all(name in TOKEN_METHODS for name in ALIASES.values()) and not set(ALIASES) & set(TOKEN_METHODS)
    listed = dict(method_table())
    assert list(listed) == list(TOKEN_METHODS) and "(also: lrp)" in listed["attnlrp"]
    assert all(text and "\n" not in text for text in listed.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: method_name("saliancy"), "unknown attribution method 'saliancy': did you mean saliency"),
        (lambda: method_name("kernelshap"), "did you mean kernel_shap"),
        (lambda: method_name("?"), "expected one of saliency, input_x_gradient"),
        (lambda: method_names([" "]), "no attribution method given"),
        (lambda: given("saliency", score, EMBEDDINGS, MASK[:, :3]), r"the mask \[batch, time\]: got \[2, 5, 4\]"),
        (lambda: given("saliency", lambda e: e, EMBEDDINGS, MASK), "score must return one number per example"),
        (lambda: given("saliency", score, EMBEDDINGS, MASK, num_samples=0), "num_samples must be at least 1"),
        (lambda: given("attention", lambda e: e.sum((1, 2)), EMBEDDINGS, MASK), "no attention weights"),
        (lambda: given("saliency", score, EMBEDDINGS, MASK * [[1], [0]]), r"nothing to attribute in 1 of 2 .*rows 1"),
        (lambda: given("value_zeroing", score, EMBEDDINGS, MASK), "value_zeroing needs 'layer_output'"),
        (lambda: given("layer_conductance", score, EMBEDDINGS, MASK), "needs one of the activations 'layer_output'"),
        (lambda: given("dig", score, EMBEDDINGS, MASK, vocabulary=None), "word vectors: give `vocabulary`"),
        (lambda: token_scores("exact_shapley", *long_text(17), key=KEY), "takes up to 16 features: got 17"),
        (lambda: method_name("dig", ["saliency"]), "unknown attribution method 'dig'"),
        (lambda: given("deepshap", score, EMBEDDINGS, MASK, baseline=EMBEDDINGS, baselines=None), "per text"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
