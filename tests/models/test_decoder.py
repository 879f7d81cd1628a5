"""The Decoder's own behaviour: caches, shared prefixes, names, edits, embeddings, meshes, refusals."""

import dataclasses
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, jit_on_mesh, make_mesh, tree_shardings
from jaxcore.models import (
    DECODER_FAMILIES,
    Decoder,
    DecoderConfig,
    KeyValueCache,
    adopt,
    fork,
    repeat_rows,
    resize,
    rewind,
    total_capacity,
    unstack_cache,
    unstack_layers,
)
from jaxcore.transforms import activation_names, capture, intervene

LAYERS, VOCABULARY, WIDTH = 3, 23, 16
SIZES = {
    "vocab_size": VOCABULARY,
    "num_layers": LAYERS,
    "hidden_size": WIDTH,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_positions": 24,
}
CONFIGS = {
    "gpt2": DecoderConfig(**{**SIZES, "num_key_value_heads": 4, "head_size": 4}),
    "qwen3": DecoderConfig(
        architecture="qwen3", **DECODER_FAMILIES["qwen3"], **SIZES, head_size=6,
        sliding_window=4, windowed_layers=(True, False, True),
    ),
}  # fmt: skip


def drawn(config: DecoderConfig):
    """Parameters large enough for the nonlinearities to matter."""
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), nn.meta.unbox(shapes))


@pytest.fixture(scope="module", params=CONFIGS)
def family(request):
    """Config, parameters, and the jitted call (params, ids, mask, cache) -> output."""
    config = CONFIGS[request.param]
    return config, drawn(config), jitted(config)


@pytest.fixture(scope="module")
def windowed():
    config = CONFIGS["qwen3"]
    return config, drawn(config), jitted(config)


def jitted(config):
    def call(params, ids, mask=None, cache=None):
        return Decoder(config).apply({"params": params}, ids, mask, cache=cache)

    return jax.jit(call)


def tokens(rows: int, time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, time)).astype(np.int32)


def close(got, expected, atol=2e-5):
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), atol=atol)


MASK = (np.arange(10) >= np.array([[0], [3]])).astype(np.int32)  # two texts of 10 and 7 tokens, left padded


@pytest.mark.parametrize("chunks", ((4, 3, 3), (7, 1, 1, 1), (10,)), ids=str)
def test_cached_calls_agree_with_one_call(family, chunks):
    """Prefill, several tokens at once, one by one, and a prefill that fills the cache (10 of 10 slots)."""
    config, params, call = family
    ids = tokens(2, 10)
    whole = call(params, ids, MASK)
    cache, start = KeyValueCache.empty(config, 2, 10 if chunks == (10,) else 12), 0
    for count in chunks:
        part = slice(start, start + count)
        output = call(params, ids[:, part], MASK[:, part], cache)
        close(output.logits[MASK[:, part] == 1], whole.logits[:, part][MASK[:, part] == 1])
        cache, start = output.cache, start + count
    assert int(cache.length) == 10 and (np.asarray(cache.valid)[:, :10] == MASK).all()


def test_the_future_and_padding_do_not_matter(family):
    _, params, call = family
    ids, other = tokens(2, 10), tokens(2, 10, seed=9)
    expected = call(params, ids, MASK).logits
    close(call(params, np.where(MASK == 1, ids, other), MASK).logits[MASK == 1], expected[MASK == 1])
    changed = np.where(np.arange(10) >= 6, other, ids)
    got = call(params, changed, MASK).logits
    close(got[:, :6][MASK[:, :6] == 1], expected[:, :6][MASK[:, :6] == 1])
    assert np.abs(got[:, 6:] - expected[:, 6:]).max() > 0.1


def test_rewound_slots_are_forgotten(windowed):
    config, params, call = windowed
    ids = tokens(2, 10)
    before = call(params, ids[:, :6], MASK[:, :6], KeyValueCache.empty(config, 2, 12)).cache
    drafted = call(params, tokens(2, 4, seed=5), None, before).cache
    again = call(params, ids[:, 7:9], None, call(params, ids[:, 6:7], None, rewind(drafted, 6)).cache)
    close(again.logits, call(params, ids, MASK).logits[:, 7:9])
    refused = dataclasses.replace(drafted, valid=drafted.valid.at[1, 7:].set(False))  # one row keeps fewer drafts
    got = call(params, ids[:, 7:8], None, refused).logits[1]
    kept = np.concatenate([ids[1:, :6], np.asarray(tokens(2, 4, seed=5))[1:, :1], ids[1:, 7:8]], 1)
    close(got, call(params, kept, np.concatenate([MASK[1:, :6], np.ones((1, 2), np.int32)], 1)).logits[0, -1:])


def test_a_shared_prefix_equals_a_copied_one(windowed):
    """Three samples of each of two prompts, then two candidates of each sample: prefixes of prefixes."""
    config, params, call = windowed
    prompt = call(params, tokens(2, 6), MASK[:, 2:8], KeyValueCache.empty(config, 2, 8)).cache  # 2 slots unused
    shared, copied = fork(prompt, 3, 4), repeat_rows(resize(prompt, 16), 3)
    assert total_capacity(shared) == 12 and shared.rows == copied.rows == 6
    new = tokens(6, 2, seed=10)
    one, two = call(params, new, None, shared), call(params, new, None, copied)
    close(one.logits, two.logits)
    shared, copied = one.cache, two.cache
    candidates = tokens(12, 1, seed=20)
    one = call(params, candidates, None, fork(shared, 2, 1))
    close(one.logits, call(params, candidates, None, repeat_rows(copied, 2)).logits)
    choice = np.array([0, 1, 1, 0, 0, 1])
    adopted = adopt(one.cache, choice)
    chosen = candidates.reshape(6, 2)[np.arange(6), choice][:, None]
    expected = call(params, chosen, None, copied)
    last = tokens(6, 1, seed=30)
    assert adopted.rows == 6 and int(adopted.length) == 3
    close(call(params, last, None, adopted).logits, call(params, last, None, expected.cache).logits)


def test_one_prompt_for_all_rows_is_never_repeated(windowed):
    """No array of the traced decode step has the prompt's keys for every row."""
    config, params, _ = windowed
    prompt = KeyValueCache.empty(config, 1, 17)
    cache = fork(prompt, 8, 5)
    jaxpr = jax.make_jaxpr(lambda p, i, c: Decoder(config).apply({"params": p}, i, cache=c).logits)(
        params, tokens(8, 1), cache
    )
    shapes = {shape for shape in shapes_in(jaxpr.jaxpr)}
    assert any(17 in shape for shape in shapes)
    assert not any(17 in shape and 8 in shape and config.head_size in shape for shape in shapes)


def shapes_in(jaxpr):
    for equation in jaxpr.eqns:
        for value in (*equation.invars, *equation.outvars):
            yield tuple(value.aval.shape)
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


@pytest.mark.parametrize("by_outputs", [True, False])
def test_unstacked_parameters_compute_and_name_the_same(windowed, by_outputs):
    """Kernels stored either way; 8 rows in a call with the cache, 72 without one."""
    config, params, call = windowed
    ids, separate = tokens(2, 6), unstack_layers(params, by_outputs=by_outputs)
    assert ("qkv_kernel_by_outputs" in separate["layers"]["0"]["attention"]) == by_outputs
    many = tokens(6, 12)
    close(call(separate, many).logits, call(params, many).logits)
    prompt = call(params, ids, None, KeyValueCache.empty(config, 2, 6)).cache
    cache = fork(prompt, 2, 3)
    new = tokens(4, 2, seed=3)

    def run(params, cache):
        return Decoder(config).apply({"params": params}, new, cache=cache)

    names = ("layer_output", "attention_weights")
    expected, captured = jax.jit(capture(run, names))(params, cache)
    got, captured_too = jax.jit(capture(run, names))(separate, unstack_cache(cache))
    close(got.logits, expected.logits)
    close(jnp.stack(got.cache.keys), expected.cache.keys)
    for name in names:
        close(captured_too[name], captured[name])
    edit = {"layer_output": lambda h, *, step: jnp.where(step == 1, 2 * h, h)}
    close(
        jax.jit(intervene(run, edit))(separate, unstack_cache(cache)).logits,
        jax.jit(intervene(run, edit))(params, cache).logits,
    )


def test_stacked_arrays_are_freed_as_they_are_unstacked(monkeypatch):
    """Each before the next one is read, and the result is the same."""
    params = drawn(CONFIGS["gpt2"])
    expected = unstack_layers(params, by_outputs=True)
    assert params["layers"]["mlp"]["in"]["kernel"].shape[0] == LAYERS  # left as they are
    stacked, held = [weakref.ref(leaf) for leaf in jax.tree.leaves(params["layers"])], []
    wait = jax.block_until_ready

    def counted(arrays):
        held.append(sum(leaf() is not None for leaf in stacked))
        return wait(arrays)

    monkeypatch.setattr(jax, "block_until_ready", counted)
    found = unstack_layers(params, by_outputs=True, consume=True)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert held == sorted(held, reverse=True) and {*held, 0} == set(range(len(stacked) + 1))
    assert not any(leaf() is not None for leaf in stacked) and not jax.tree.leaves(params["layers"])


def test_named_activations(windowed):
    config, params, _ = windowed
    names = activation_names(lambda p, i: Decoder(config).apply({"params": p}, i), params, tokens(2, 5))
    hidden, square = (LAYERS, 2, 5, WIDTH), (LAYERS, 2, 4, 5, 5)
    assert {name: value.shape for name, value in names.items()} == {
        "token_embeddings": (2, 5, WIDTH),
        "embeddings": (2, 5, WIDTH),
        "attention_scores": square,
        "attention_weights": square,
        "attention_heads": (LAYERS, 2, 5, 4, 6),
        "attention_output": hidden,
        "mlp_hidden": (LAYERS, 2, 5, 24),
        "mlp_output": hidden,
        "layer_output": hidden,
    }


def test_the_residual_stream_adds_up(windowed):
    config, params, _ = windowed
    ids = tokens(2, 5)
    names = ("embeddings", "attention_output", "mlp_output", "layer_output")
    _, seen = jax.jit(capture(lambda p: Decoder(config).apply({"params": p}, ids), names))(params)
    before = jnp.concatenate([seen["embeddings"][None], seen["layer_output"][:-1]])
    close(before + seen["attention_output"] + seen["mlp_output"], seen["layer_output"])


def test_suppressed_attention_holds_in_prefill_and_decode_alike(windowed):
    """Nobody looks at tokens 2 and 3: in one call, and in prefill plus decode with cache or shared prefix."""
    config, params, _ = windowed
    ids = tokens(2, 8)
    suppressed = np.array([2, 3])

    def suppress(scores):
        return scores.at[..., suppressed].set(-1e9)

    def run(params, ids, cache):
        return Decoder(config).apply({"params": params}, ids, cache=cache)

    edited = jax.jit(intervene(run, {"attention_scores": suppress}))
    whole, seen = jax.jit(capture(intervene(run, {"attention_scores": suppress}), "attention_weights"))(
        params, ids, None
    )
    assert float(seen["attention_weights"][:, :, :, 4:, 2:4].max()) == 0
    cache = edited(params, ids[:, :5], KeyValueCache.empty(config, 2, 5)).cache
    for continued in (resize(cache, 9), fork(cache, 1, 4)):
        for t in range(5, 8):
            output = edited(params, ids[:, t : t + 1], continued)
            close(output.logits[:, 0], whole.logits[:, t])
            continued = output.cache
    assert np.abs(whole.logits[:, 4:] - jax.jit(run)(params, ids, None).logits[:, 4:]).max() > 0.01


def test_edits_cannot_reveal_the_future(windowed):
    config, params, _ = windowed
    ids, changed = tokens(1, 6), tokens(1, 6)
    changed[0, 5] = (changed[0, 5] + 1) % VOCABULARY
    edited = jax.jit(
        intervene(
            lambda ids: Decoder(config).apply({"params": params}, ids).logits,
            {"attention_scores": lambda s: jnp.zeros_like(s)},
        )
    )
    close(edited(ids)[:, :5], edited(changed)[:, :5])


def test_given_embeddings_stand_for_ids(family):
    config, params, call = family
    model, ids = Decoder(config), tokens(2, 6)
    vectors = model.apply({"params": params}, ids, method="embed")
    close(vectors, params["embeddings"]["word"][ids])

    def logits(vectors):
        return model.apply({"params": params}, None, embeddings=vectors).logits

    close(jax.jit(logits)(vectors), call(params, ids).logits)
    gradient = jax.jit(jax.grad(lambda v: logits(v)[:, 3, 5].sum()))(vectors)
    assert float(jnp.abs(gradient[:, 4:]).max()) == 0 < float(jnp.abs(gradient[:, :4]).min(-1).max())


def test_trunk_and_logits_are_the_two_halves(windowed):
    config, params, call = windowed
    model, ids = Decoder(config), tokens(2, 6)
    hidden, cache = model.apply({"params": params}, ids, method="trunk")
    whole = call(params, ids)
    close(hidden, whole.last_hidden_state)
    assert cache is None
    close(model.apply({"params": params}, hidden[:, -1], method="logits"), whole.logits[:, -1])


@pytest.mark.parametrize(
    "changes",
    ({"remat": "full"}, {"remat": "dots", "scan_layers": False}, {"attention_implementation": "fused"}),
    ids=str,
)
def test_ways_to_run_agree_in_value_and_gradient(changes, windowed):
    config, params, _ = windowed
    ids = tokens(2, 10)

    def value_and_gradient(config):
        def loss(params):
            return (
                jax.nn.log_softmax(Decoder(config).apply({"params": params}, ids, MASK).logits)[:, 3:, 0] ** 2
            ).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    expected, got = value_and_gradient(config), value_and_gradient(dataclasses.replace(config, **changes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), expected, got)


def test_fused_attention_has_no_names_with_or_without_a_cache(windowed):
    """So that an edit of scores is refused, instead of holding in some calls only."""
    config = dataclasses.replace(windowed[0], attention_implementation="fused")
    for cache in (None, KeyValueCache.empty(config, 2, 8)):
        names = activation_names(
            lambda p, cache=cache: Decoder(config).apply({"params": p}, tokens(2, 4), cache=cache), windowed[1]
        )
        assert "layer_output" in names and "attention_scores" not in names and "attention_weights" not in names


def test_dropout_follows_its_key_and_only_in_training():
    config = dataclasses.replace(CONFIGS["gpt2"], dropout=0.1, embedding_dropout=0.1, attention_dropout=0.1)
    params, ids = drawn(config), tokens(2, 6)

    @jax.jit
    def train(key):
        return Decoder(config).apply({"params": params}, ids, deterministic=False, rngs={"dropout": key}).logits

    one, two = train(jax.random.key(0)), train(jax.random.key(1))
    np.testing.assert_array_equal(one, train(jax.random.key(0)))
    assert not np.allclose(one, two, atol=1e-2)
    close(jitted(config)(params, ids).logits, jitted(CONFIGS["gpt2"])(params, ids).logits)
    with pytest.raises(ValueError, match="dropout needs stacked parameters"):
        Decoder(config).apply(
            {"params": unstack_layers(params)}, ids, deterministic=False, rngs={"dropout": jax.random.key(0)}
        )


def test_bfloat16_stays_close_and_gives_float32_logits(windowed):
    config, params, call = windowed
    low = dataclasses.replace(config, dtype="bfloat16")
    ids = tokens(2, 6)
    output = jitted(low)(params, ids, None, KeyValueCache.empty(low, 2, 8))
    assert output.logits.dtype == jnp.float32 and output.last_hidden_state.dtype == jnp.bfloat16
    assert output.cache.keys.dtype == jnp.bfloat16
    expected = np.asarray(call(params, ids).logits)
    assert np.abs(output.logits - expected).mean() < 0.05 * expected.std()


def test_on_a_mesh_as_on_one_device(family):
    """Eight devices: parameters split by their logical axes, prefill and decode the same."""
    config, params, call = family
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))["params"]
    shardings = tree_shardings(boxed, mesh)
    placed = jax.device_put(params, shardings)
    kernel = placed["layers"]["attention"]["qkv_kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    ids = tokens(4, 6)

    def run(params, ids, cache):
        return Decoder(config).apply({"params": params}, ids, cache=cache)

    on_mesh = jit_on_mesh(run, mesh)
    first = on_mesh(placed, ids[:, :5], KeyValueCache.empty(config, 4, 8))
    second = on_mesh(placed, ids[:, 5:], first.cache)
    expected = call(params, ids).logits
    close(first.logits, expected[:, :5], atol=1e-4)
    close(second.logits[:, 0], expected[:, 5], atol=1e-4)


def test_wrong_inputs_are_refused(windowed):
    config, params, call = windowed
    model = Decoder(config)

    def run(ids=None, mask=None, **others):
        return model.apply({"params": params}, ids, mask, **others)

    def after(ids, cache):
        return call(params, ids, None, cache).cache

    ids, cache, long = tokens(2, 4), KeyValueCache.empty(config, 2, 6), KeyValueCache.empty(config, 1, 22)
    cases = [
        (lambda: run(np.ones((2, 25), np.int32)), "texts of 25 tokens, but the model's context is 24 tokens"),
        (
            lambda: run(np.full((1, 3), VOCABULARY)),
            r"input_ids\[0, 0\] is 23, but .* ids 0 to 22",
        ),
        (lambda: run(np.array([[1, -1]])), r"input_ids\[0, 1\] is -1"),
        (lambda: run(ids.astype(np.float32)), "integer array"),
        (lambda: run(ids, np.ones((2, 5))), r"attention_mask must have the shape of the tokens \(2, 4\), got \(2, 5\)"),
        (lambda: run(ids, positions=np.ones((1, 4), np.int32)), "positions must have the shape"),
        (lambda: run(), "either input_ids or embeddings"),
        (lambda: run(ids, embeddings=jnp.zeros((2, 4, WIDTH))), "either input_ids or embeddings"),
        (lambda: run(embeddings=jnp.zeros((2, 4, 3))), r"embeddings must be \(batch, time, 16\)"),
        (lambda: run(tokens(2, 7), cache=cache), "7 tokens were given to a cache of 6 slots"),
        (
            lambda: run(ids, cache=after(ids, cache)),
            "4 tokens were given to a cache with 4 of 6 slots in use",
        ),
        (lambda: run(tokens(3, 2), cache=cache), "the cache has 2 rows, but 3 texts were given"),
        (
            lambda: run(ids, cache=KeyValueCache.empty(dataclasses.replace(config, head_size=8), 2, 6)),
            "holds 2 key-value heads of size 8, but the model has 2 of size 6",
        ),
        (
            lambda: run(tokens(1, 3), cache=fork(after(tokens(1, 22), long), 1, 3)),
            "texts of 25 tokens, but the model's context is 24",
        ),
    ]
    for refused, message in cases:
        with pytest.raises(ValueError, match=message):
            refused()


def test_what_cannot_be_checked_under_jit_gives_nan(windowed):
    config, params, call = windowed
    cache = call(params, tokens(1, 4), None, KeyValueCache.empty(config, 1, 6)).cache
    assert np.isfinite(call(params, tokens(1, 2), None, cache).logits).all()
    assert np.isnan(call(params, tokens(1, 3), None, cache).logits).all()
    for wrong in (VOCABULARY, -1):
        logits = call(params, np.array([[1, wrong], [1, 2]]), None).logits
        assert np.isnan(logits[0, 1]).all() and np.isfinite(logits[1]).all()
