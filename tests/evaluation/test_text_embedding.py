"""embed_texts against one text at a time, against torch, across batch sizes and meshes, and on bad input."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.data import train_tokenizer
from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.evaluation import text_embedding
from jaxcore.evaluation.text_embedding import EmbeddingOptions, embed_texts, embed_windows
from jaxcore.models import Encoder, EncoderConfig

WORDS = (
    "amber", "basil", "cedar", "dune", "ember", "fjord", "grove", "heath", "iris", "jade", "kelp", "lotus", "maple",
    "night", "ocean", "pearl",
)  # fmt: skip
LONGEST = 24
WIDTHS = (8, LONGEST)


def make_texts(count, seed=0):
    """Texts of three lengths: each length is a program to compile."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size)) for size in rng.choice([2, 9, 20], count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(make_texts(200), vocab_size=60, kind="word")


@pytest.fixture(scope="module")
def encoder(tokenizer):
    """A small encoder with large weights, so that a wrong mask shows."""
    config = EncoderConfig(
        vocab_size=len(tokenizer), num_layers=2, hidden_size=32, num_heads=4, intermediate_size=48,
        max_positions=LONGEST, pooler="cls_tanh",
    )  # fmt: skip
    model = Encoder(config)
    shapes = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"])
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def mesh():
    """One device: less to compile than the eight that are the default here."""
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def alone(encoder, tokenizer):
    """Texts, and the hidden states and pooled vector of each by itself, without padding and without a mask."""
    model, params = encoder
    apply = jax.jit(lambda ids: model.apply({"params": params}, ids))
    texts = make_texts(61, seed=1)
    outputs = [apply(np.array([tokenizer(text)["input_ids"]], np.int32)) for text in texts]
    return texts, [(np.asarray(o.last_hidden_state[0], np.float64), np.asarray(o.pooled[0])) for o in outputs]


def pooled_alone(alone, pooling):
    return np.stack([POOLS[pooling](*output) for output in alone[1]])


POOLS = {
    "model": lambda hidden, pooled: pooled,
    "mean": lambda hidden, pooled: hidden.mean(0),
    "cls": lambda hidden, pooled: hidden[0],
    "max": lambda hidden, pooled: hidden.max(0),
}


@pytest.mark.parametrize("pooling", POOLS)
def test_vectors_are_those_of_each_text_alone(encoder, tokenizer, alone, mesh, pooling):
    expected = pooled_alone(alone, pooling)
    got = embed_texts(*encoder, tokenizer, alone[0], pooling=pooling, widths=WIDTHS, mesh=mesh)
    assert got.dtype == np.float32 and got.shape == (61, 32)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    unit = embed_texts(*encoder, tokenizer, alone[0], pooling=pooling, normalize=True, widths=WIDTHS, mesh=mesh)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("devices", (1, 2, 4, 8))
def test_neither_batch_size_nor_devices_change_a_vector(encoder, tokenizer, alone, devices):
    mesh = make_mesh(MeshConfig(), jax.devices()[:devices])
    for batch_tokens, widths in ((1, (LONGEST,)), (100, (LONGEST,)), (4096, WIDTHS)):
        got = embed_texts(
            *encoder, tokenizer, alone[0], pooling="mean", batch_tokens=batch_tokens, widths=widths, mesh=mesh
        )
        assert np.abs(got - pooled_alone(alone, "mean")).max() < 1e-5


def test_widths_are_chosen_where_none_are_given(encoder, tokenizer, alone):
    (window,) = embed_windows(*encoder, tokenizer, [alone[0]], options=EmbeddingOptions("mean"), num_texts=10**9)
    assert window.widths[:3] == (4, 11, 22) and window.widths[-1] == LONGEST  # so many texts are worth exact widths
    assert np.abs(window.vectors - pooled_alone(alone, "mean")).max() < 1e-5


def test_sharded_parameters_stay_sharded(encoder, tokenizer):
    model, params = encoder
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=1), jax.devices()[:4])
    by_columns = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    placed = {**params, "embeddings": {**params["embeddings"]}}
    placed["embeddings"]["word"] = jax.device_put(params["embeddings"]["word"], by_columns)
    assert text_embedding.on_mesh(placed, mesh)["embeddings"]["word"].sharding == by_columns
    texts = make_texts(20, seed=3)
    plain = embed_texts(model, params, tokenizer, texts, widths=WIDTHS)
    sharded = embed_texts(model, placed, tokenizer, texts, widths=WIDTHS, mesh=mesh)
    np.testing.assert_allclose(sharded, plain, atol=1e-5)


def test_windows_stream_in_order_and_say_what_they_cost(encoder, tokenizer, monkeypatch):
    texts = make_texts(50, seed=4)
    whole = embed_texts(*encoder, tokenizer, texts, widths=WIDTHS)
    finished = []
    windows = [texts[:20], texts[20:21], texts[21:]]
    results = list(
        embed_windows(
            *encoder, tokenizer, iter(windows), widths=WIDTHS, advance=finished.append,
            options=EmbeddingOptions(batch_tokens=48),
        )
    )  # fmt: skip
    np.testing.assert_allclose(np.concatenate([window.vectors for window in results]), whole, atol=1e-5)
    assert [len(window.vectors) for window in results] == [20, 1, 29] and sum(finished) == 50
    for window, given in zip(results, windows, strict=True):
        assert window.num_tokens == sum(len(tokenizer(text)["input_ids"]) for text in given)
        assert window.num_computed >= window.num_tokens and window.num_truncated == 0
    monkeypatch.setattr(text_embedding, "WINDOW_TEXTS", 16)
    np.testing.assert_allclose(embed_texts(*encoder, tokenizer, texts, widths=WIDTHS), whole, atol=1e-5)


def test_long_texts_are_cut_as_the_tokenizer_cuts_them(encoder, tokenizer, mesh):
    texts = [" ".join(WORDS[:k]) for k in (3, 16)]
    cut = tokenizer(texts[1], truncation=True, max_length=7)["input_ids"]
    model, params = encoder
    expected = model.apply({"params": params}, np.array([cut], np.int32)).last_hidden_state[0].mean(0)
    options = EmbeddingOptions(pooling="mean", max_length=7)
    (window,) = embed_windows(model, params, tokenizer, [texts], options=options, mesh=mesh)
    assert window.num_truncated == 1 and max(window.widths) == 7
    np.testing.assert_allclose(window.vectors[1], expected, atol=1e-5)
    before = tokenizer.backend_tokenizer.truncation
    embed_texts(model, params, tokenizer, texts, max_length=5, mesh=mesh)
    assert tokenizer.backend_tokenizer.truncation == before  # the caller's tokenizer is not touched


def test_a_text_without_tokens_is_the_zero_vector(encoder, tokenizer, mesh):
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    bare.backend_tokenizer.post_processor = None
    for pooling in POOLS:
        vectors = embed_texts(*encoder, bare, ["", "amber"], pooling=pooling, normalize=True, widths=WIDTHS, mesh=mesh)
        assert not vectors[0].any() and np.linalg.norm(vectors[1]) == pytest.approx(1, abs=1e-5)


def test_low_precision_stays_close_and_comes_as_float32(encoder, tokenizer, mesh):
    model, params = encoder
    texts = make_texts(10, seed=5)
    low = Encoder(dataclasses.replace(model.config, dtype="bfloat16"))
    got = embed_texts(low, params, tokenizer, texts, pooling="mean", normalize=True, widths=WIDTHS, mesh=mesh)
    expected = embed_texts(model, params, tokenizer, texts, pooling="mean", normalize=True, widths=WIDTHS, mesh=mesh)
    assert got.dtype == np.float32 and (got * expected).sum(1).min() > 0.99
    assert not np.allclose(got, expected, atol=1e-5)


def test_repeated_calls_compile_nothing_anew(encoder, tokenizer, mesh):
    texts = make_texts(30, seed=6)
    embed_texts(*encoder, tokenizer, texts, widths=(LONGEST,), mesh=mesh)
    before = text_embedding._embed_batch._cache_size()
    embed_texts(*encoder, tokenizer, texts[:7], widths=(LONGEST,), mesh=mesh)
    assert text_embedding._embed_batch._cache_size() == before


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "at least one string, got none"),
        ("amber", {}, "got one string"),
        (["amber", "basil", None], {}, "text 2 is NoneType, not str"),
        (["amber"], {"pooling": "sum"}, "pooling must be one of model, mean, cls, max, got 'sum'"),
        (["amber"], {"max_length": 25}, "max_length is 25, but the model has 24 positions"),
        (["amber"], {"max_length": 2}, "leaves no room beside 2 special tokens"),
        (["amber"], {"batch_tokens": 0}, "batch_tokens must be an integer >= 1, got 0"),
        ([" ".join(WORDS)], {"widths": (8,)}, "a text has 18 tokens but the largest width is 8"),
    ],
)
def test_bad_input_is_named(encoder, tokenizer, texts, options, message):
    with pytest.raises(ValueError, match=message):
        embed_texts(*encoder, tokenizer, texts, **options)


def test_models_that_do_not_fit_are_named(encoder, tokenizer):
    model, params = encoder
    poolerless = Encoder(dataclasses.replace(model.config, pooler="none"))
    with pytest.raises(ValueError, match="no pooler of its own; choose the pooling mean, cls or max"):
        embed_texts(poolerless, params, tokenizer, ["amber"])
    small = Encoder(dataclasses.replace(model.config, vocab_size=5))
    with pytest.raises(ValueError, match=r"gives id \d+, but the model has 5 token vectors"):
        embed_texts(small, params, tokenizer, ["amber"])
    broken = jax.tree.map(np.copy, params)
    broken["embeddings"]["word"][tokenizer.convert_tokens_to_ids("cedar")] = np.nan
    with pytest.raises(ValueError, match="the vector of text 2 is not finite"):
        embed_texts(model, broken, tokenizer, ["amber", "basil dune", "cedar"])
