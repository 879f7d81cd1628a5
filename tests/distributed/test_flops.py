"""The walk against counts of the same work written without loops, and against XLA where XLA counts right."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxcore.distributed import RECOMPUTE_SCOPE, MeshConfig, count_flops, make_mesh

N = 8
MATMUL = 2 * N**3
X = jax.ShapeDtypeStruct((N, N), jnp.float32)


def unrolled(length):
    def function(x, ws):
        for layer in range(length):
            x = jnp.tanh(x @ ws[layer]) @ ws[layer]
        return x

    return function


def scanned(x, ws):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w) @ w, None), x, ws)[0]


def weights(length):
    return jax.ShapeDtypeStruct((length, N, N), jnp.float32)


@pytest.mark.parametrize("length", [1, 3, 7])
def test_scan_counts_as_unrolled(length):
    assert count_flops(scanned, X, weights(length)) == count_flops(unrolled(length), X, weights(length))
    assert count_flops(scanned, X, weights(length)).hardware == 2 * length * MATMUL


def test_gradient_of_scan_counts_as_unrolled():
    def total(function):
        return jax.grad(lambda x, ws: function(x, ws).sum(), argnums=(0, 1))

    expected = count_flops(total(unrolled(3)), X, weights(3))
    assert count_flops(jax.jit(total(scanned)), X, weights(3)) == expected
    assert expected.hardware == 3 * 2 * 3 * MATMUL  # forward once, backward twice


def test_nested_scans_multiply():
    def outer(x, ws):
        return jax.lax.scan(lambda x, _: (scanned(x, ws), None), x, None, length=5)[0]

    assert count_flops(outer, X, weights(3)).hardware == 5 * 3 * 2 * MATMUL


@pytest.mark.parametrize("scan", [False, True])
def test_remat_is_told_apart(scan):
    """Per layer: 2 forward, 4 backward, and the recomputed forward, of which the last tanh's input is not
    needed."""

    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    def loss(x, ws, wrap):
        if scan:
            return jax.lax.scan(lambda x, w: (wrap(layer)(x, w), None), x, ws)[0].sum()
        for at in range(3):
            x = wrap(layer)(x, ws[at])
        return x.sum()

    plain = count_flops(jax.grad(functools.partial(loss, wrap=lambda f: f), argnums=(0, 1)), X, weights(3))
    remat = count_flops(jax.grad(functools.partial(loss, wrap=jax.checkpoint), argnums=(0, 1)), X, weights(3))
    assert plain.recomputed == 0 and plain.hardware == 18 * MATMUL
    assert remat.model == plain.hardware
    assert remat.recomputed == 6 * MATMUL


def test_work_repeated_by_hand_can_say_so():
    def step(x):
        with jax.named_scope(RECOMPUTE_SCOPE):
            again = jax.jit(lambda x: x @ x)(x)
        return again + x @ x

    count = count_flops(step, X)
    assert (count.hardware, count.model) == (2 * MATMUL, MATMUL)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_while_of_known_length(wrap):
    def condition(state):
        return state[0] < 6

    def body(state):
        return state[0] + 1, state[1] @ state[1]

    def loop(x):
        return jax.lax.while_loop(condition, body, (jnp.int32(2), x))[1]

    assert count_flops(wrap(loop), X).hardware == 4 * MATMUL
    fori = wrap(lambda x: jax.lax.fori_loop(jnp.int32(1), jnp.int32(6), lambda _, x: x @ x, x))
    assert count_flops(fori, X).hardware == 5 * MATMUL
    assert count_flops(lambda x: jax.lax.fori_loop(0, 5, lambda _, x: x @ x, x), X).hardware == 5 * MATMUL


def test_while_of_unknown_length_is_not_guessed():
    def loop(x, n):
        return jax.lax.fori_loop(0, n, lambda _, x: x @ x, x)

    count = jax.ShapeDtypeStruct((), jnp.int32)
    with pytest.raises(ValueError, match=r"1 while loop.*assumed_trips"):
        count_flops(loop, X, count)
    assumed = count_flops(loop, X, count, assumed_trips=7)
    assert (assumed.hardware, assumed.unknown_loops) == (7 * MATMUL, 1)

    def doubling(x):  # the counter does not rise by one
        return jax.lax.while_loop(lambda s: s[0] < 64, lambda s: (s[0] * 2, s[1] @ s[1]), (jnp.int32(1), x))[1]

    with pytest.raises(ValueError):
        count_flops(doubling, X)


def test_cond_takes_the_dearest_branch():
    def function(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count_flops(function, X).hardware == 2 * MATMUL


def test_shard_map_counts_every_shard():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))

    def local(x, w):
        return x @ w

    over_all = jax.shard_map(local, mesh=mesh, in_specs=(P(("data", "fsdp")), P()), out_specs=P(("data", "fsdp")))
    over_one = jax.shard_map(local, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), axis_names={"data"})
    for function in (over_all, over_one, jax.jit(over_all)):
        assert count_flops(function, X, X).hardware == MATMUL  # rows are split, work is not repeated
    repeated = jax.shard_map(local, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)
    assert count_flops(repeated, X, X).hardware == 8 * MATMUL


def test_custom_derivatives():
    @jax.custom_vjp
    def square(x):
        return x @ x

    square.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))

    @jax.custom_jvp
    def cube(x):
        return x @ x @ x

    cube.defjvp(lambda primals, tangents: (cube(*primals), tangents[0] @ primals[0]))
    assert count_flops(square, X).hardware == MATMUL
    assert count_flops(jax.grad(lambda x: square(x).sum()), X).hardware == 3 * MATMUL
    assert count_flops(cube, X).hardware == 2 * MATMUL
    assert count_flops(jax.grad(lambda x: cube(x).sum()), X).hardware == 3 * MATMUL


def test_batched_and_contracted_dot():
    a = jax.ShapeDtypeStruct((2, 3, 5, 7), jnp.float32)
    b = jax.ShapeDtypeStruct((2, 3, 11, 7), jnp.float32)
    assert count_flops(lambda a, b: jnp.einsum("bhqd,bhkd->bhqk", a, b), a, b).hardware == 2 * 2 * 3 * 5 * 11 * 7


@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        ((4, 2, 3, 3), {"window_strides": (1, 1), "padding": "SAME"}),
        ((4, 1, 3, 3), {"window_strides": (2, 1), "padding": "VALID", "feature_group_count": 2}),
        (
            (4, 2, 3, 2),
            {
                "window_strides": (2, 1),
                "padding": [(0, 0), (3, 1)],
                "lhs_dilation": (2, 3),
                "rhs_dilation": (1, 2),
            },
        ),
    ],
)
def test_convolutions_as_xla_counts_them(kernel, settings):
    def function(x, k):
        return jax.lax.conv_general_dilated(x, k, **settings)

    x, k = jax.ShapeDtypeStruct((3, 2, 8, 9), jnp.float32), jax.ShapeDtypeStruct(kernel, jnp.float32)
    xla: Any = jax.jit(function).lower(x, k).cost_analysis()
    assert count_flops(function, x, k).hardware == xla["flops"]


def test_patch_embedding_by_hand():
    """ViT: 16 x 16 patches of 3 channels to width 32 is one matmul per patch."""
    x, k = (
        jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32),
        jax.ShapeDtypeStruct((16, 16, 3, 32), jnp.float32),
    )

    def function(x, k):
        return jax.lax.conv_general_dilated(x, k, (16, 16), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert count_flops(function, x, k).hardware == 2 * 2 * 16 * (16 * 16 * 3) * 32
