"""The Encoder's own behaviour: masks, shapes, remat, scan, dtype, dropout, names."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcore.models import Encoder, EncoderConfig, masked_mean


@pytest.fixture(scope="module")
def apply(small_config, small_params):
    """The small encoder as a jitted function of its inputs."""
    return jax.jit(lambda *inputs: Encoder(small_config).apply({"params": small_params}, *inputs))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), lengths=st.tuples(st.integers(1, 8), st.integers(1, 8)))
def test_what_padding_holds_does_not_matter(apply, seed, lengths):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 19, (2, 8)).astype(np.int32)
    mask = (np.arange(8) < np.array(lengths)[:, None]).astype(np.int32)
    other = np.where(mask == 1, ids, rng.integers(0, 19, ids.shape)).astype(np.int32)
    one, two = apply(ids, mask), apply(other, mask)
    real = mask == 1
    np.testing.assert_allclose(one.last_hidden_state[real], two.last_hidden_state[real], atol=1e-6)
    np.testing.assert_allclose(one.pooled, two.pooled, atol=1e-6)


def test_rows_are_independent_and_follow_their_order(apply):
    ids = np.random.default_rng(0).integers(0, 19, (4, 8)).astype(np.int32)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(ids).pooled[order], apply(ids[order]).pooled, atol=1e-6)


def test_a_longer_padding_changes_nothing(apply):
    ids = np.random.default_rng(1).integers(0, 19, (2, 5)).astype(np.int32)
    padded = np.pad(ids, ((0, 0), (0, 6)))
    mask = np.pad(np.ones_like(ids), ((0, 0), (0, 6)))
    np.testing.assert_allclose(apply(padded, mask).last_hidden_state[:, :5], apply(ids).last_hidden_state, atol=1e-5)


def test_a_text_without_tokens_stays_finite(apply):
    output = apply(np.zeros((2, 4), np.int32), np.array([[0, 0, 0, 0], [1, 1, 0, 0]], np.int32))
    assert np.isfinite(output.last_hidden_state).all()


def test_an_id_outside_the_vocabulary_gives_nan(apply):
    output = apply(np.array([[1, 19, 2]], np.int32), np.array([[1, 0, 1]], np.int32))
    assert np.isnan(output.last_hidden_state[0, 1]).all()


@pytest.mark.parametrize(
    "changes",
    (
        {"remat": "full"},
        {"remat": "dots"},
        {"remat": "dots", "scan_layers": False},
        {"attention_implementation": "fused"},
    ),
    ids=str,
)
def test_ways_to_run_agree_in_value_and_gradient(changes, small_config, small_params):
    """Rematerialised, unrolled or fused, the function is the same (dropout off where kernels lack it)."""
    base = dataclasses.replace(small_config, attention_dropout=0.0, dropout=0.0 if "attention" in str(changes) else 0.1)
    ids = np.random.default_rng(2).integers(0, 19, (3, 6)).astype(np.int32)
    mask = (np.arange(6) < np.array([[6], [4], [1]])).astype(np.int32)

    def value_and_grad(config):
        def loss(params):
            output = Encoder(config).apply(
                {"params": params}, ids, mask, deterministic=False, rngs={"dropout": jax.random.key(3)}
            )
            return (output.last_hidden_state[..., 0] ** 3).sum() + output.pooled.sum()

        return jax.jit(jax.value_and_grad(loss))(small_params)

    expected, got = value_and_grad(base), value_and_grad(dataclasses.replace(base, **changes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), expected, got)


@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"scan_layers": False, "remat": "dots"},
        {"remat": "full", "attention_implementation": "fused"},
        {"num_layers": 1},
    ),
    ids=str,
)
def test_the_first_token_alone_has_the_same_vector_and_gradient(changes, small_config, small_params):
    config = dataclasses.replace(small_config, num_layers=changes.get("num_layers", 2))
    params = {**small_params, "layers": jax.tree.map(lambda p: p[: config.num_layers], small_params["layers"])}
    ids = np.random.default_rng(2).integers(0, 19, (3, 6)).astype(np.int32)
    mask = (np.arange(6) < np.array([[6], [4], [1]])).astype(np.int32)

    def value_and_grad(config):
        def loss(params):
            output = Encoder(config).apply({"params": params}, ids, mask)
            return (output.last_hidden_state[:, 0] ** 3).sum() + output.pooled.sum(), output

        (_, output), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return output.last_hidden_state[:, :1], output.pooled, gradient

    got = value_and_grad(dataclasses.replace(config, output_tokens="first", **changes))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), value_and_grad(config), got)


def test_the_first_token_alone_saves_most_of_the_last_block(small_config):
    """Of two blocks of 12 d^2 multiplications per token, the last one keeps 2 d^2: keys and values."""
    wide = dataclasses.replace(small_config, hidden_size=64, intermediate_size=256, scan_layers=False)
    ids = np.zeros((4, 12), np.int32)

    def flops(**changes):
        model = Encoder(dataclasses.replace(wide, **changes))
        params = nn.meta.unbox(jax.eval_shape(model.init, jax.random.key(0), ids))
        return jax.jit(model.apply).lower(params, ids).compile().cost_analysis()["flops"]

    assert flops(output_tokens="first") < (12 + 2) / 24 * 1.1 * flops()


def test_the_first_token_alone_in_training_has_dropout_and_the_same_parameters(small_config, small_params):
    model = Encoder(dataclasses.replace(small_config, output_tokens="first"))
    ids = np.arange(12).reshape(2, 6)
    fresh = nn.meta.unbox(model.init(jax.random.key(0), ids)["params"])
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, small_params)
    draws = [
        model.apply({"params": small_params}, ids, deterministic=False, rngs={"dropout": jax.random.key(i)}).pooled
        for i in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 1e-3


def test_remat_saves_fewer_residuals(small_config, small_params):
    """What the backward pass keeps per policy: full < dots < none."""
    ids = jnp.ones((4, 12), jnp.int32)

    def kept(remat: str) -> int:
        model = Encoder(dataclasses.replace(small_config, remat=remat))
        _, pullback = jax.eval_shape(
            lambda params: jax.vjp(lambda p: model.apply({"params": p}, ids).pooled, params), small_params
        )
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept("full") < kept("dots") < kept("none")


def test_bfloat16_computes_in_bfloat16_and_stays_close(small_config, small_params, apply):
    model = Encoder(dataclasses.replace(small_config, dtype="bfloat16"))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    ids = np.random.default_rng(4).integers(0, 19, (2, 8)).astype(np.int32)
    output = model.apply({"params": small_params}, ids)
    assert output.last_hidden_state.dtype == output.pooled.dtype == jnp.bfloat16
    expected = apply(ids)
    np.testing.assert_allclose(np.asarray(output.last_hidden_state, np.float32), expected.last_hidden_state, atol=0.15)


def test_dropout_follows_its_key_and_only_in_training(small_config, small_params):
    model = Encoder(small_config)
    ids = np.random.default_rng(5).integers(0, 19, (2, 8)).astype(np.int32)

    @jax.jit
    def train(key):
        return model.apply({"params": small_params}, ids, deterministic=False, rngs={"dropout": key}).pooled

    one, again, two = train(jax.random.key(0)), train(jax.random.key(0)), train(jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, two, atol=1e-3)
    without = Encoder(dataclasses.replace(small_config, dropout=0.0, attention_dropout=0.0))
    plain = without.apply({"params": small_params}, ids, deterministic=False).pooled
    np.testing.assert_allclose(plain, model.apply({"params": small_params}, ids).pooled, atol=1e-6)


def dropout_draws(jaxpr) -> int:
    """Number of random draws in a jaxpr, a scan's body counted once."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == "random_bits"
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        total += sum(dropout_draws(value) for value in inner if hasattr(value, "eqns"))
    return total


def training_jaxpr(config):
    """The forward pass in training as a jaxpr, traced on abstract parameters."""
    model, ids = Encoder(config), jnp.ones((1, 4), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), ids)

    def train(variables, key):
        return model.apply(variables, ids, deterministic=False, rngs={"dropout": key}).pooled

    return jax.make_jaxpr(train)(variables, jax.random.key(0))


def test_layers_draw_different_dropout(small_config):
    """One dropout key per block enters the scan, so equal blocks differ in what they drop."""
    assert "key<fry>[2]" in str(training_jaxpr(small_config))


@pytest.mark.parametrize("pooler", ("cls_tanh", "mean", "mean_linear", "none"))
def test_poolers_against_their_formulas(pooler, small_config, small_params):
    params = dict(small_params)
    if pooler in ("mean", "none"):
        params.pop("pooler")
    model = Encoder(dataclasses.replace(small_config, pooler=pooler))
    ids = np.random.default_rng(6).integers(0, 19, (2, 8)).astype(np.int32)
    mask = np.array([[1] * 8, [1] * 3 + [0] * 5], np.int32)
    output = model.apply({"params": params}, ids, mask)
    hidden = np.asarray(output.last_hidden_state, np.float64)
    mean = np.stack([hidden[0].mean(0), hidden[1, :3].mean(0)])
    dense = {name: np.asarray(value, np.float64) for name, value in small_params["pooler"]["dense"].items()}
    expected = {
        "cls_tanh": np.tanh(hidden[:, 0] @ dense["kernel"] + dense["bias"]),
        "mean": mean,
        "mean_linear": mean @ dense["kernel"] + dense["bias"],
        "none": None,
    }[pooler]
    if expected is None:
        assert output.pooled is None
    else:
        np.testing.assert_allclose(output.pooled, expected, atol=1e-5)


def test_masked_mean_of_nothing_is_zero():
    np.testing.assert_array_equal(masked_mean(jnp.ones((1, 3, 2)), jnp.zeros((1, 3), bool)), np.zeros((1, 2)))


def test_activations_are_named(small_config, small_params):
    """Every name in the room's list occurs in the jaxpr, once per place it is documented for."""
    jaxpr = str(
        jax.make_jaxpr(lambda p: Encoder(small_config).apply({"params": p}, jnp.ones((3, 5), jnp.int32)))(small_params)
    )
    documented = {
        "token_embeddings": "3,5,16", "embeddings": "3,5,16", "attention_weights": "3,2,5,5",
        "attention_heads": "3,5,2,8", "attention_output": "3,5,16",
        "mlp_hidden": "3,5,24", "mlp_output": "3,5,16",
        "layer_output": "3,5,16", "pooled": "3,16",
    }  # fmt: skip
    for name, shape in documented.items():
        lines = [line for line in jaxpr.splitlines() if f"name[name={name}]" in line]
        assert len(lines) == 1 and f"f32[{shape}]" in lines[0], (name, lines)


def test_axis_names_of_parameters(small_config):
    boxed = jax.eval_shape(Encoder(small_config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    names = nn.get_partition_spec(boxed)
    spec = jax.sharding.PartitionSpec
    assert names["embeddings"]["word"] == spec("vocab", "embed")
    assert names["layers"]["attention"]["qkv_kernel"] == spec("layers", "embed", "heads", None, None)
    assert names["layers"]["attention"]["output"]["kernel"] == spec("layers", "heads", "embed")
    assert names["layers"]["mlp_in"]["kernel"] == spec("layers", "embed", "mlp")
    assert names["layers"]["mlp_out"]["kernel"] == spec("layers", "mlp", "embed")
    for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata)):
        assert isinstance(leaf, nn.LogicallyPartitioned) and len(leaf.names) == leaf.value.ndim


def test_sharded_over_eight_devices_equals_one(small_config, small_params, apply):
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    model = Encoder(small_config)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    rules = (("heads", "tensor"), ("mlp", "tensor"), ("embed", "fsdp"))
    params = jax.device_put(small_params, nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    ids = np.random.default_rng(7).integers(0, 19, (8, 6)).astype(np.int32)
    got = jax.jit(lambda p, i: model.apply({"params": p}, i).last_hidden_state)(params, jax.device_put(ids, rows))
    np.testing.assert_allclose(got, apply(ids).last_hidden_state, atol=1e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    (
        ((np.ones(3, np.int32),), r"integer array \(batch, time\), got int32 of shape \(3,\)"),
        ((np.ones((1, 3), np.float32),), "integer array"),
        (
            (np.ones((1, 3), np.int32), np.ones((1, 4), np.int32)),
            r"attention_mask must have the shape .*\(1, 4\)",
        ),
        ((np.ones((1, 13), np.int32),), "texts of 13 tokens, but the model has 12 positions"),
    ),
)
def test_wrong_inputs_are_refused(apply, inputs, message):
    with pytest.raises(ValueError, match=message):
        apply(*inputs)


def test_distilbert_refuses_token_types(small_config):
    config = dataclasses.replace(small_config, architecture="distilbert", num_token_types=0)
    with pytest.raises(ValueError, match="distilbert has no token types"):
        jax.eval_shape(Encoder(config).init, jax.random.key(0), *(jnp.ones((1, 4), jnp.int32),) * 3)


@pytest.mark.parametrize("architecture", ("bert", "roberta", "distilbert"))
def test_dropout_places_match_transformers(architecture, small_config):
    """Dropout masks: one on embeddings, three per block; DistilBERT has none on attention output."""
    config = dataclasses.replace(
        small_config,
        architecture=architecture,
        num_token_types=0 if architecture == "distilbert" else 2,
        position_offset=int(architecture == "roberta"),
    )
    draws = dropout_draws(training_jaxpr(config).jaxpr)
    assert draws == (3 if architecture == "distilbert" else 4)


def test_config_is_a_value(small_config):
    assert hash(small_config) == hash(dataclasses.replace(small_config))
    assert EncoderConfig().head_size == 64 and EncoderConfig().max_length == 512
