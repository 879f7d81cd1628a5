"""The recurrent classifier against torch's nn.LSTM on packed sequences, and what padding must not change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta
from scipy import optimize

from jaxcore.attribution import activation_gradient
from jaxcore.distributed import MeshConfig, batch_sharding, jit_on_mesh, make_mesh, tree_shardings
from jaxcore.models.recurrent import RecurrentClassifier, RecurrentConfig, with_word_vectors
from jaxcore.transforms import activation_names, capture, intervene

CONFIG = RecurrentConfig(vocab_size=23, embedding_size=6, hidden_size=5, num_layers=2, num_classes=3, attention_size=4)
PAIR = dataclasses.replace(CONFIG, inputs="pair", num_layers=1)
LENGTHS = np.array([9, 5, 1, 7])
MASK = (np.arange(9) < LENGTHS[:, None]).astype(np.int32)
IDS = np.random.default_rng(0).integers(0, 23, (4, 9)).astype(np.int32)
SECOND_LENGTHS = np.array([2, 6, 4, 1])
SECOND_MASK = (np.arange(6) < SECOND_LENGTHS[:, None]).astype(np.int32)
SECOND_IDS = np.random.default_rng(1).integers(0, 23, (4, 6)).astype(np.int32)


def drawn(config: RecurrentConfig):
    texts = (IDS, None, SECOND_IDS) if config.inputs == "pair" else (IDS,)
    params = meta.unbox(jax.jit(RecurrentClassifier(config).init)(jax.random.key(0), *texts))["params"]
    return jax.tree.map(lambda leaf: 2 * leaf + 0.05, params)  # biases away from 0, gates away from their middle


PARAMS = drawn(CONFIG)
PAIR_PARAMS = drawn(PAIR)


def apply(config, params, *inputs, **options):
    run = jax.jit(lambda params, inputs: RecurrentClassifier(config).apply({"params": params}, *inputs, **options))
    return run(params, inputs)


def torch_states(params, config, vectors, lengths):
    """Hidden states by torch.nn.LSTM on packed sequences, in float64: the two biases of torch add up to ours."""
    torch = pytest.importorskip("torch", reason="parity tests need the extra 'torch'")
    lstm = torch.nn.LSTM(
        config.embedding_size, config.hidden_size, config.num_layers, batch_first=True, bidirectional=True
    ).double()
    with torch.no_grad():
        for layer in range(config.num_layers):
            ours = {k: np.asarray(v, np.float64) for k, v in params[f"layer_{layer}"].items()}
            for direction, suffix in enumerate(("", "_reverse")):
                place = f"l{layer}{suffix}"
                getattr(lstm, f"weight_ih_{place}").copy_(torch.tensor(ours["kernel"][:, direction].T))
                getattr(lstm, f"weight_hh_{place}").copy_(torch.tensor(ours["recurrent_kernel"][direction].T))
                getattr(lstm, f"bias_ih_{place}").copy_(torch.tensor(0.25 * ours["bias"][direction]))
                getattr(lstm, f"bias_hh_{place}").copy_(torch.tensor(0.75 * ours["bias"][direction]))
    pack, unpack = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    packed = pack(torch.tensor(vectors), torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    return unpack(lstm(packed)[0], batch_first=True, total_length=vectors.shape[1])[0].detach().numpy()


def attended(states, lengths, attention, kind):
    """Weights and contexts text by text, from the equations, on real tokens alone."""
    weights, contexts = np.zeros(states.shape[:2]), []
    for row, length in enumerate(lengths):
        h = states[row, :length]
        if kind == "additive":
            scores = np.tanh(h @ attention["kernel"] + attention["bias"]) @ attention["vector"]
        else:
            scores = h @ attention["query"] / np.sqrt(h.shape[1]) if kind == "dot" else np.zeros(length)
        alpha = np.exp(scores) / np.exp(scores).sum()
        weights[row, :length] = alpha
        contexts.append(alpha @ h)
    return weights, np.array(contexts)


@pytest.mark.parametrize("kind", ("additive", "dot", "uniform"))
def test_single_texts_match_torch(kind):
    config = dataclasses.replace(CONFIG, attention=kind)
    params = PARAMS if kind == "additive" else drawn(config)
    vectors = np.asarray(params["word"], np.float64)[IDS]
    states = torch_states(params, config, vectors, LENGTHS)
    ours = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    weights, contexts = attended(states, LENGTHS, ours.get("attention"), kind)
    run = jax.jit(capture(lambda: RecurrentClassifier(config).apply({"params": params}, IDS, MASK), "hidden_states"))
    output, seen = run()
    np.testing.assert_allclose(seen["hidden_states"], states, atol=1e-5)
    np.testing.assert_allclose(output.attention_weights, weights, atol=1e-5)
    np.testing.assert_allclose(output.logits, contexts @ ours["output"]["kernel"] + ours["output"]["bias"], atol=1e-5)
    assert output.second_attention_weights is None


def test_pairs_match_torch():
    ours = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), PAIR_PARAMS)
    contexts, weights = [], []
    for ids, lengths in ((IDS, LENGTHS), (SECOND_IDS, SECOND_LENGTHS)):
        states = torch_states(PAIR_PARAMS, PAIR, ours["word"][ids], lengths)
        alpha, context = attended(states, lengths, ours["attention"], "additive")
        weights.append(alpha)
        contexts.append(context)
    a, b = contexts
    features = np.concatenate([a, b, abs(a - b), a * b], axis=1)
    output = apply(PAIR, PAIR_PARAMS, IDS, MASK, SECOND_IDS, SECOND_MASK)
    np.testing.assert_allclose(output.logits, features @ ours["output"]["kernel"] + ours["output"]["bias"], atol=1e-5)
    np.testing.assert_allclose(output.attention_weights, weights[0], atol=1e-5)
    np.testing.assert_allclose(output.second_attention_weights, weights[1], atol=1e-5)


@pytest.mark.parametrize("normaliser", ("sparsemax", "entmax15"))
def test_sparse_attention_looks_away_from_tokens_and_attribution_finds_it_by_name(normaliser):
    config = dataclasses.replace(CONFIG, attention_normaliser=normaliser, num_layers=1)
    params = {name: leaf for name, leaf in PARAMS.items() if name != "layer_1"}
    params["attention"] = jax.tree.map(lambda leaf: 3 * leaf, params["attention"])  # scores far enough apart
    model = RecurrentClassifier(config)
    vectors = model.apply({"params": params}, IDS, method="embed")

    def score(vectors):
        return model.apply({"params": params}, vectors, MASK, method="classify").logits[:, 1]

    (weights, gradient), hidden = jax.jit(
        lambda x: (activation_gradient(score, x, "attention_weights"), capture(score, "hidden_states")(x)[1])
    )(vectors)
    assert 0 < (weights[MASK == 1] == 0).mean() < 1 and not weights[MASK == 0].any()
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    # The logit is linear in the context, so its derivative to a weight is what that token's state adds.
    np.testing.assert_allclose(gradient, hidden["hidden_states"] @ params["output"]["kernel"][:, 1], atol=1e-5)
    h = np.asarray(hidden["hidden_states"], np.float64)[1, :5]
    scores = np.tanh(h @ params["attention"]["kernel"] + params["attention"]["bias"]) @ params["attention"]["vector"]
    scale, power = (1, 1) if normaliser == "sparsemax" else (0.5, 2)
    threshold = optimize.brentq(
        lambda tau: (np.maximum(scale * scores - tau, 0) ** power).sum() - 1,
        scale * scores.max() - 1,
        scale * scores.max(),
    )
    np.testing.assert_allclose(weights[1, :5], np.maximum(scale * scores - threshold, 0) ** power, atol=1e-5)


@pytest.mark.parametrize("side", ("right", "left"))
def test_padding_changes_nothing(side):
    place = (0, 4) if side == "right" else (4, 0)
    ids, mask = (np.pad(array, ((0, 0), place), constant_values=fill) for array, fill in ((IDS, 7), (MASK, 0)))
    expected, got = apply(CONFIG, PARAMS, IDS, MASK), apply(CONFIG, PARAMS, ids, mask)
    np.testing.assert_allclose(got.logits, expected.logits, atol=1e-6)
    start = place[0]
    np.testing.assert_allclose(got.attention_weights[:, start : start + 9], expected.attention_weights, atol=1e-6)
    changed = np.where(MASK == 1, IDS, (IDS + 1) % 23)
    np.testing.assert_array_equal(apply(CONFIG, PARAMS, changed, MASK).logits, expected.logits)
    assert np.abs(apply(CONFIG, PARAMS, IDS).logits - expected.logits)[1:].min() > 1e-4


def test_gradients_stay_off_padding_and_match_float64_differences():
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIG, dtype="float64", num_layers=1)
        params = {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), drawn(config))}
        model = RecurrentClassifier(config)
        vectors = model.apply(params, IDS, method="embed")
        score = jax.jit(lambda x: jnp.sin(model.apply(params, x, MASK, method="classify").logits).sum())
        gradient = np.asarray(jax.jit(jax.grad(score))(vectors))
        assert np.all(gradient[MASK == 0] == 0) and np.all(np.abs(gradient[MASK == 1]).sum(-1) > 0)
        direction = np.random.default_rng(3).normal(size=vectors.shape)
        difference = (score(vectors + 1e-5 * direction) - score(vectors - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose(difference, (gradient * direction).sum(), rtol=1e-7)


def test_named_activations_are_where_a_reader_looks_for_them():
    def run(ids, mask):
        return RecurrentClassifier(CONFIG).apply({"params": PARAMS}, ids, mask).logits

    shapes = {name: value.shape for name, value in activation_names(run, IDS, MASK).items()}
    assert shapes == {
        "token_embeddings": (4, 9, 6),
        "text_states": (4, 9, 10),
        "hidden_states": (4, 9, 10),
        "attention_weights": (4, 9),
        "logits": (4, 3),
    }
    uniform = MASK / MASK.sum(1, keepdims=True)
    edited = jax.jit(intervene(run, {"attention_weights": lambda weights: jnp.asarray(uniform)}))(IDS, MASK)
    config = dataclasses.replace(CONFIG, attention="uniform")
    params = {name: leaf for name, leaf in PARAMS.items() if name != "attention"}
    np.testing.assert_allclose(edited, apply(config, params, IDS, MASK).logits, atol=1e-6)

    def pair():
        return RecurrentClassifier(PAIR).apply({"params": PAIR_PARAMS}, IDS, MASK, SECOND_IDS, SECOND_MASK)

    names = activation_names(pair)
    assert names["text_states"].shape == (8, 9, 10)
    first, second = names["token_embeddings"]
    assert (first.shape, second.shape) == ((4, 9, 6), (4, 6, 6))


def test_a_text_without_tokens_is_finite():
    empty = MASK.copy()
    empty[2] = 0
    output = apply(CONFIG, PARAMS, IDS, empty)
    np.testing.assert_allclose(output.logits[2], PARAMS["output"]["bias"], atol=1e-6)
    assert not output.attention_weights[2].any()


def test_word_vectors_are_taken_over_and_can_be_frozen():
    table = np.random.default_rng(5).normal(size=(23, 6))
    params = with_word_vectors(PARAMS, table)
    np.testing.assert_allclose(params["word"], table, atol=1e-6)
    assert params["layer_0"] is not None and PARAMS["word"] is not params["word"]
    frozen = RecurrentClassifier(dataclasses.replace(CONFIG, trainable_embeddings=False, num_layers=1))

    def loss(params):
        return frozen.apply({"params": params}, IDS, MASK).logits.sum()

    gradients = jax.jit(jax.grad(loss))({name: leaf for name, leaf in params.items() if name != "layer_1"})
    assert not gradients["word"].any() and gradients["layer_0"]["kernel"].any()
    with pytest.raises(ValueError, match=r"\[23, 6\], got \[22, 6\]"):
        with_word_vectors(PARAMS, table[1:])
    with pytest.raises(ValueError, match="floating point"):
        with_word_vectors(PARAMS, np.ones((23, 6), int))


def test_dropout_and_half_precision():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    options = {"deterministic": False, "rngs": {"dropout": jax.random.key(1)}}
    dropped = apply(config, PARAMS, IDS, MASK, **options).logits
    assert np.abs(dropped - apply(config, PARAMS, IDS, MASK).logits).min() > 1e-4
    half = apply(dataclasses.replace(CONFIG, dtype="bfloat16"), PARAMS, IDS, MASK)
    assert half.logits.dtype == jnp.float32 and half.attention_weights.dtype == jnp.float32
    exact = apply(CONFIG, PARAMS, IDS, MASK).logits
    assert 1e-5 < np.abs(half.logits - exact).max() < 0.05


@pytest.mark.parametrize("inputs", ["single", "pair"])
def test_a_mesh_divides_the_work_and_changes_nothing(inputs):
    """Of eight devices each does an eighth of the products: rows behind time would be replicated by the partitioner."""
    config = dataclasses.replace(CONFIG, num_layers=1, hidden_size=32, embedding_size=64, inputs=inputs)
    model, rng = RecurrentClassifier(config), np.random.default_rng(2)
    texts = [rng.integers(0, 23, (32, 12)) for _ in range(1 + (inputs == "pair"))]
    batch = tuple(a for ids in texts for a in (ids.astype(np.int32), np.ones_like(ids, np.int32)))
    boxed = jax.eval_shape(model.init, jax.random.key(0), *batch)["params"]
    params = meta.unbox(jax.jit(model.init)(jax.random.key(0), *batch))["params"]

    def loss(params, batch):
        return jnp.mean(model.apply({"params": params}, *batch).logits ** 2)

    def compiled(devices, **axes):
        mesh = make_mesh(MeshConfig(**axes), jax.devices()[:devices])
        placed = jax.device_put(params, tree_shardings(boxed, mesh)), jax.device_put(batch, batch_sharding(mesh))
        run = jit_on_mesh(jax.grad(loss), mesh).lower(*placed).compile()
        return run.cost_analysis()["flops"], run(*placed)

    whole, expected = compiled(1)
    share, gradient = compiled(8, data=4, fsdp=2)
    assert share < whole / 4  # an eighth of the products, and what is left of element-wise work on the parameters
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), gradient, expected)


def test_bad_input():
    with pytest.raises(ValueError, match="inputs='pair' but one text"):
        apply(PAIR, PAIR_PARAMS, IDS, MASK)
    with pytest.raises(ValueError, match="inputs='single' but two texts"):
        apply(CONFIG, PARAMS, IDS, MASK, SECOND_IDS)
    with pytest.raises(ValueError, match="one batch size"):
        apply(PAIR, PAIR_PARAMS, IDS, MASK, SECOND_IDS[:2], SECOND_MASK[:2])
    with pytest.raises(ValueError, match="attention_mask must have the shape"):
        apply(CONFIG, PARAMS, IDS, MASK[:, 1:])
    with pytest.raises(ValueError, match=r"\(batch, time, 6\)"):
        apply(CONFIG, PARAMS, np.ones((2, 3, 4), np.float32), method="classify")
    with pytest.raises(ValueError, match="attention must be one of additive, dot, uniform"):
        RecurrentConfig(attention="cosine")
    with pytest.raises(ValueError, match="attention_normaliser must be one of softmax, sparsemax, entmax15, got 'max'"):
        RecurrentConfig(attention_normaliser="max")
    with pytest.raises(ValueError, match="hidden_size must be positive"):
        RecurrentConfig(hidden_size=0)
