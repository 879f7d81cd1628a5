"""All targets of a sequence at once: what each method gives for the prefix before each target, on its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxcore.attribution import (
    attention_flow,
    attention_rollout,
    attention_weights,
    raw_attention,
    token_scores,
    value_zeroing,
)
from jaxcore.attribution.sequence_targets import (
    SEQUENCE_METHODS,
    SequenceScores,
    aggregate_matrix,
    expected_totals,
    sequence_task,
    sequence_token_scores,
    target_gradients,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCABULARY, TIME, DIM = 11, 7, 8
IDS = np.asarray([[3, 1, 4, 1, 5, 9, 2], [2, 7, 1, 8, 2, 0, 0]], np.int32)
MASK = np.asarray([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], np.int32)
POSITIONS = np.asarray([[3, 4, 5], [1, 2, 3]], np.int32)
TOKENS = np.take_along_axis(IDS, POSITIONS + 1, axis=1)
KEY = jax.random.key(4)
COUNTS = {"num_steps": 3, "num_samples": 6}
ATTENTION = ("attention", "attention_rollout", "attention_flow")
SAME_CODE = (  # but for what other tests cover, as another method's
    "input_x_gradient",
    "deepshap",
    "cp_lrp",
    "grad_sam",
    "lime",
    "shapley_sampling",
    "sequential_integrated_gradients",
    "deeplift_reveal_cancel",
    "lrp_gamma",
    "lrp_alpha_beta",
    "exact_shapley",
    "rise",
)


@dataclasses.dataclass(frozen=True)
class Model:
    """Two causal blocks without linen: quick to compile, with the names that attention methods look for."""

    words: jax.Array
    blocks: dict[str, jax.Array]

    def trunk(self, mask):
        time = np.shape(mask)[1]
        visible = np.tril(np.ones((time, time), bool)) & (np.asarray(mask)[:, None, :] != 0)

        def block(x, w):
            scores = jnp.einsum("btd,bsd->bts", x @ w["query"], x @ w["key"])[:, None]
            weights = jax.nn.softmax(jnp.where(visible[:, None], scores, -1e9), axis=-1)
            weights = checkpoint_name(weights, "attention_weights")
            x = x + jnp.einsum("bhts,bsd->btd", weights, x @ w["value"])
            return checkpoint_name(x + jnp.tanh(x @ w["in"]) @ w["out"], "layer_output"), None

        return lambda x: jax.lax.scan(block, x, self.blocks)[0]

    def scores(self, mask=MASK, positions=POSITIONS, tokens=TOKENS, **options):
        return SequenceScores(self.trunk(mask), lambda states: states @ self.words.T, positions, tokens, **options)

    def logits(self, ids):
        """Of what follows the last of `ids`."""
        hidden = self.trunk(np.ones((1, len(ids))))(self.words[np.asarray(ids)][None])
        return np.asarray(hidden[0, -1] @ self.words.T, np.float64)


@pytest.fixture(scope="module")
def tiny():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(0.4 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    blocks = {name: draw(2, DIM, DIM) for name in ("query", "key", "value", "in", "out")}
    return Model(draw(VOCABULARY, DIM), blocks)


@pytest.fixture(scope="module")
def arrays(tiny):
    """Embeddings of the texts, and what stands for no word."""
    return tiny.words[IDS], tiny.words[10], tiny.words[jnp.asarray([10, 6])][:, None]


def computed(tiny, arrays, name, **options):
    """In one program: traced, compiled and run once."""
    given = {"baseline": arrays[1], "baselines": arrays[2], "chunk_size": 2, **COUNTS, **options}
    run = lambda x: sequence_token_scores(name, tiny.scores(), x, MASK, key=KEY, **given)  # noqa: E731
    return np.asarray((run if name == "attention_flow" else jax.jit(run))(arrays[0]))


def named(*, is_random):
    names = [name for name, method in SEQUENCE_METHODS.items() if method.is_random == is_random]
    return [
        pytest.param(name, marks=pytest.mark.slow if name in SAME_CODE else ())
        for name in names
        if name not in ATTENTION
    ]


def alone(name, scores, embeddings, mask, arrays):
    """The method for the first target, by itself, in one program."""
    if name == "value_zeroing":
        maps = jax.jit(lambda: value_zeroing(lambda: scores.trunk(embeddings), mask, chunk_size=2))()
        return np.asarray(maps).mean(axis=0)[:, int(scores.positions[0, 0])]
    run = jax.jit(
        lambda x: token_scores(
            name, scores.of_target(0), x, mask, key=KEY, baseline=arrays[1], baselines=arrays[2], chunk_size=2, **COUNTS
        )
    )
    return np.asarray(run(embeddings))


@pytest.mark.parametrize("name", named(is_random=False))
def test_a_target_is_explained_as_by_its_prefix_alone(tiny, arrays, name):
    found = computed(tiny, arrays, name)
    assert found.shape == (2, 3, TIME)
    end = POSITIONS[0, 1] + 1  # the sequence ends with the position that predicts the target
    cut = tiny.scores(MASK[:1, :end], POSITIONS[:1, 1:2], TOKENS[:1, 1:2])
    (expected,) = alone(name, cut, arrays[0][:1, :end], MASK[:1, :end], arrays)
    np.testing.assert_allclose(found[0, 1, :end], expected, atol=3e-5, rtol=3e-4)
    assert np.ptp(expected) > 1e-3 and np.all(found[0, 1, end:] == 0)
    assert np.all(found[1, 2, 4:] == 0) and np.ptp(found[1, 2]) > 1e-3  # padding, and its own token


@pytest.mark.parametrize("name", named(is_random=True))
def test_random_methods_draw_once_for_all_targets(tiny, arrays, name):
    found = computed(tiny, arrays, name)
    last = dataclasses.replace(tiny.scores(), positions=POSITIONS[:, 2:], tokens=TOKENS[:, 2:])
    expected = alone(name, last, arrays[0], MASK, arrays)
    before = np.arange(TIME) <= POSITIONS[:, 2:]
    np.testing.assert_allclose(found[:, 2], np.where(before, expected, 0), atol=3e-5, rtol=3e-4)
    assert np.ptp(expected) > 1e-3


def test_attention_is_read_where_the_target_is_predicted(tiny, arrays):
    weights = attention_weights(tiny.trunk(MASK))(arrays[0])
    for name, read in (("attention", raw_attention), ("attention_rollout", attention_rollout)):
        expected = np.stack([read(weights, query=POSITIONS[:, number]) for number in range(3)], axis=1)
        np.testing.assert_allclose(computed(tiny, arrays, name), expected, atol=1e-6)
    flows = computed(tiny, arrays, "attention_flow")
    np.testing.assert_allclose(flows[1, 0], attention_flow(weights[1:], MASK[1:], query=1)[0], atol=1e-6)
    np.testing.assert_allclose(flows.sum(axis=2), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["log_probability", "probability", "logit", "margin"])
def test_scores_are_those_of_the_next_token(tiny, arrays, kind):
    versus = (TOKENS + 3) % VOCABULARY
    versus[1, 1] = -1
    found = np.asarray(tiny.scores(versus=versus, kind=kind)(arrays[0]))

    def score(logits, token):
        log_probs = logits - np.logaddexp.reduce(logits)
        others = np.delete(logits, token).max()
        return {"logit": logits[token], "log_probability": log_probs[token], "probability": np.exp(log_probs[token]),
                "margin": logits[token] - others}[kind]  # fmt: skip

    for example in range(2):
        for number in range(3):
            logits = tiny.logits(IDS[example, : POSITIONS[example, number] + 1])
            expected = score(logits, TOKENS[example, number])
            if versus[example, number] >= 0:
                expected -= score(logits, versus[example, number])
            assert found[example, number] == pytest.approx(expected, abs=2e-5)
    one = tiny.scores(versus=versus, kind=kind).of_target(2)(arrays[0])
    np.testing.assert_allclose(one, found[:, 2], atol=1e-5)


def test_gradients_of_a_contrast_are_differences(tiny, arrays):
    versus = (TOKENS + 3) % VOCABULARY
    gradients = {
        name: np.asarray(target_gradients(scores, arrays[0], chunk_size=3))
        for name, scores in {
            "both": tiny.scores(versus=versus, kind="logit"),
            "token": tiny.scores(kind="logit"),
            "versus": tiny.scores(tokens=versus, kind="logit"),
        }.items()
    }
    size = np.abs(gradients["token"]).max()
    np.testing.assert_allclose(gradients["both"], gradients["token"] - gradients["versus"], atol=5e-6 * size)
    assert np.abs(gradients["versus"]).max() > 1e-2


def test_chunks_and_budgets_change_nothing(tiny, arrays):
    whole = computed(tiny, arrays, "integrated_gradients", chunk_size=3)
    for options in ({"chunk_size": 1}, {"chunk_size": None, "memory_budget": 1}):
        np.testing.assert_allclose(computed(tiny, arrays, "integrated_gradients", **options), whole, atol=1e-6)


def test_one_forward_pass_serves_all_targets(tiny, arrays):
    """The trunk's own products are as large for three targets as for one, of a masked copy and of a point alike."""

    def forward_rows(name, count):
        scores = tiny.scores(positions=POSITIONS[:, :count], tokens=TOKENS[:, :count])
        shapes = []

        def trunk(x):
            hidden = tiny.trunk(MASK)(x)
            jax.debug.callback(lambda h: shapes.append(h.shape), hidden)
            return hidden

        scores = dataclasses.replace(scores, trunk=trunk)
        options = {"baseline": arrays[1], "chunk_size": 4, **COUNTS}
        run = lambda x: sequence_token_scores(name, scores, x, MASK, key=KEY, **options)  # noqa: E731
        jax.block_until_ready(jax.jit(run)(arrays[0]))
        jax.effects_barrier()
        return len(shapes)

    for name in ("integrated_gradients", "occlusion"):
        assert forward_rows(name, 3) == forward_rows(name, 1) > 0


@pytest.mark.parametrize("name", ["integrated_gradients", "occlusion"])
def test_what_is_not_attributed_stays(tiny, arrays, name):
    """The prompt alone is moved: the same as a model whose other tokens are constants."""
    prompt = np.asarray([[1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]], bool)
    found = computed(tiny, arrays, name, attributed=prompt)
    assert np.all(found[:, :, 4:] == 0) and np.all(found[1, :, 2:] == 0) and np.ptp(found[1]) > 1e-3
    task = sequence_task(tiny.scores(), arrays[0], MASK, KEY, prompt, arrays[1], num_steps=3)
    moved = jnp.where(prompt[..., None], arrays[1], arrays[0])
    change = np.asarray(tiny.scores()(arrays[0]) - tiny.scores()(moved))
    method = SEQUENCE_METHODS["integrated_gradients"]
    np.testing.assert_allclose(expected_totals(method, task), change, atol=1e-5)
    if name == "integrated_gradients":
        fine = computed(tiny, arrays, name, attributed=prompt, num_steps=60)
        np.testing.assert_allclose(fine.sum(axis=2), change, atol=2e-3)
    else:  # one token left out by hand
        without = arrays[0].at[:, 1].set(arrays[1])
        np.testing.assert_allclose(found[:, :, 1], tiny.scores()(arrays[0]) - tiny.scores()(without), atol=1e-5)


def test_totals_of_each_kind(tiny, arrays):
    task = sequence_task(tiny.scores(), *arrays[:1], MASK, KEY, None, arrays[1], arrays[2])
    whole = tiny.scores()(arrays[0])
    at = [tiny.scores()(jnp.broadcast_to(row, arrays[0].shape)) for row in arrays[2]]
    expected = {"score": whole, "change": whole - at[0], "mean_change": whole - (at[0] + at[1]) / 2}
    for name, method in SEQUENCE_METHODS.items():
        total = expected_totals(method, task)
        if method.total is None:
            assert total is None, name
        else:
            np.testing.assert_allclose(total, expected[method.total], atol=1e-5)


def test_a_matrix_of_segments_is_that_of_its_parts():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 3, 5))
    rows, columns = np.asarray([[0, 0, 1], [0, -1, 0]]), np.asarray([[0, 1, 1, -1, 2], [0, 0, 0, 0, 0]])
    found = np.asarray(aggregate_matrix(jnp.asarray(scores), rows, columns))
    expected = np.zeros((2, 2, 3))
    for example, row, column in np.ndindex(2, 3, 5):
        if rows[example, row] >= 0 and columns[example, column] >= 0:
            expected[example, rows[example, row], columns[example, column]] += scores[example, row, column]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    largest = aggregate_matrix(jnp.asarray(scores), rows, columns, source_reduction="max", target_reduction="mean")
    assert float(largest[0, 0, 1]) == pytest.approx(scores[0, :2, 1:3].max(axis=1).mean(), abs=1e-5)
    with pytest.raises(ValueError, match=r"target_ids must be \[2, 3\]"):
        aggregate_matrix(jnp.asarray(scores), columns, columns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": [[1, 2], [3, 7]], "tokens": [[1, 2], [3, 4]]}, "positions must be 0 to 6: got 7"),
        ({"positions": [1, 2]}, r"positions must be \[2, targets\]"),
        ({"tokens": TOKENS + 9}, "tokens must be 0 to 10: got"),
        ({"tokens": TOKENS[:, :2]}, r"tokens must be integers \[2, 3\], one per target"),
        ({"versus": TOKENS - 30}, "versus must be -1 to 10"),
        ({"versus": TOKENS[:, 1:]}, r"versus must be integers \[2, 3\]"),
        ({"kind": "loss"}, "kind must be one of log_probability, probability, logit, margin: got 'loss'"),
    ],
)
def test_scores_that_do_not_fit_are_refused(tiny, arrays, changes, message):
    changes = {name: np.asarray(value) if isinstance(value, list) else value for name, value in changes.items()}
    scores = dataclasses.replace(tiny.scores(), **changes)
    with pytest.raises(ValueError, match=message):
        sequence_token_scores("saliency", scores, arrays[0], MASK, key=KEY)


def test_other_bad_input_is_refused(tiny, arrays):
    with pytest.raises(ValueError, match="did you mean integrated_gradients"):
        sequence_token_scores("integrated_gradient", tiny.scores(), arrays[0], MASK, key=KEY)
    with pytest.raises(ValueError, match="attributed leaves nothing"):
        sequence_token_scores("saliency", tiny.scores(), arrays[0], MASK, key=KEY, attributed=np.zeros((2, TIME), bool))
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        sequence_token_scores("ig", tiny.scores(), arrays[0], MASK, key=KEY, num_steps=0)
    with pytest.raises(ValueError, match=r"embeddings must be floats \[batch, time, dim\]"):
        sequence_token_scores("saliency", tiny.scores(), IDS, MASK, key=KEY)
