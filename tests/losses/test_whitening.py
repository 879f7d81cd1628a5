"""Whitening against its definition, torch in float64, finite differences and the invariances of the transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, batch_sharding, make_mesh
from jaxcore.losses import whitening as w

RNG = np.random.default_rng(0)
MIXING = RNG.standard_normal((12, 12))
CORRELATED = RNG.standard_normal((64, 12)) @ MIXING + 3.0
PERMUTATION = np.array([7, 2, 11, 0, 5, 9, 1, 3, 10, 4, 8, 6])


def array(x):
    return jnp.asarray(x, jnp.float32)


def covariance(x):
    x = np.asarray(x, np.float64)
    x = x - x.mean(0)
    return x.T @ x / len(x)


def torch_group_whiten(x, permutation, num_groups):
    """Steps M2.1 to M2.6 with torch in float64 and no epsilon."""
    torch = pytest.importorskip("torch")
    x = torch.tensor(np.asarray(x, np.float64))
    shuffled = x[:, torch.tensor(permutation)]
    whitened = []
    for group in torch.chunk(shuffled, num_groups, dim=1):
        group = group - group.mean(0)
        values, vectors = torch.linalg.eigh(group.T @ group / len(group))
        whitened.append(group @ vectors @ torch.diag(values**-0.5) @ vectors.T)
    result = torch.empty_like(x)
    result[:, torch.tensor(permutation)] = torch.cat(whitened, dim=1)
    return result.numpy()


# ---- the matrix ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_matrix_is_the_inverse_square_root(method):
    blocks = np.stack([covariance(RNG.standard_normal((50, 5)) @ RNG.standard_normal((5, 5))) for _ in range(3)])
    matrices = np.asarray(w.zca_matrix(array(blocks), epsilon=1e-2, method=method), np.float64)
    for block, matrix in zip(blocks, matrices, strict=True):
        shifted = block + 1e-2 * np.trace(block) / 5 * np.eye(5)
        np.testing.assert_allclose(matrix @ shifted @ matrix, np.eye(5), atol=2e-4)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-5 * np.abs(matrix).max())
        assert np.linalg.eigvalsh(matrix).min() > 0


@pytest.mark.parametrize("size", [6, 48])
def test_newton_schulz_agrees_with_eigh(size):
    blocks = np.stack([covariance(RNG.standard_normal((256, size))) for _ in range(4)])
    by_eigh, by_products = (
        np.asarray(w.zca_matrix(array(blocks), epsilon=1e-5, method=m)) for m in ("eigh", "newton_schulz")
    )
    np.testing.assert_allclose(by_products, by_eigh, atol=1e-3 * np.abs(by_eigh).max())


def test_newton_schulz_reaches_the_smallest_eigenvalue_epsilon_allows():
    with jax.enable_x64(True):
        block = jnp.diag(jnp.array([1.0, 0.3, 0.0, 0.0]))[None]
        matrix = np.asarray(w.zca_matrix(block, epsilon=1e-5, method="newton_schulz")[0])
    values = np.array([1.0, 0.3, 0.0, 0.0]) + 1e-5 * 1.3 / 4
    np.testing.assert_allclose(matrix, np.diag(values**-0.5), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_matrix_is_finite_whatever_the_covariance(method, epsilon):
    vector = RNG.standard_normal(6)
    blocks = np.stack([np.zeros((6, 6)), np.outer(vector, vector), np.eye(6) * 1e-20, np.eye(6) * 1e20])
    matrices = np.asarray(w.zca_matrix(array(blocks), epsilon=epsilon, method=method))
    assert np.isfinite(matrices).all()
    assert (matrices[0] == 0).all()
    np.testing.assert_allclose(matrices[2], np.eye(6) * 1e10, rtol=1e-3, atol=1e6)


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_gradient_through_the_matrix_is_exact_where_eigenvalues_meet(method):
    """The derivative of eigenvectors is infinite at the identity; that of the inverse root is -dC / 2."""
    change = RNG.standard_normal((1, 4, 4))
    change = (change + change.transpose(0, 2, 1)) / 2

    def root(block):
        return w.zca_matrix(block, epsilon=0.0, method=method, differentiable=True)

    _, tangent = jax.jvp(root, (jnp.eye(4)[None],), (array(change),))
    np.testing.assert_allclose(tangent, -change / 2, atol=1e-5)
    gradient = jax.grad(lambda block: jnp.vdot(root(block), array(change)))(jnp.eye(4)[None])
    np.testing.assert_allclose(gradient, -change / 2, atol=1e-5)


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_gradient_through_the_matrix_equals_finite_differences(method):
    block, change, weights = covariance(RNG.standard_normal((9, 4))), RNG.standard_normal((4, 4)), RNG.random((4, 4))
    change = change + change.T
    with jax.enable_x64(True):

        def value(step):
            matrix = w.zca_matrix(
                jnp.asarray(block + step * change)[None], epsilon=1e-3, method=method, differentiable=True
            )
            return jnp.vdot(matrix[0], jnp.asarray(weights))

        numeric = (value(1e-5) - value(-1e-5)) / 2e-5
        exact = jax.grad(
            lambda b: jnp.vdot(
                w.zca_matrix(b[None], epsilon=1e-3, method=method, differentiable=True)[0], jnp.asarray(weights)
            )
        )(jnp.asarray(block))
    assert float(np.vdot(exact, change)) == pytest.approx(float(numeric), rel=1e-6)


# ---- one batch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_groups", [1, 4])
def test_equals_torch_in_float64(num_groups):
    expected = torch_group_whiten(CORRELATED, PERMUTATION, num_groups)
    with jax.enable_x64(True):
        exact = w.group_whiten(jnp.asarray(CORRELATED), jnp.asarray(PERMUTATION), num_groups=num_groups, epsilon=0.0)
    np.testing.assert_allclose(exact, expected, atol=1e-9)
    single = w.group_whiten(array(CORRELATED), jnp.asarray(PERMUTATION), num_groups=num_groups, epsilon=0.0)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, atol=2e-3 if num_groups == 1 else 2e-4)


def test_groups_are_white_and_only_they():
    white = w.group_whiten(array(CORRELATED), jnp.asarray(PERMUTATION), num_groups=4, epsilon=0.0)
    shuffled = covariance(np.asarray(white)[:, PERMUTATION])
    for group in range(4):
        own = slice(3 * group, 3 * group + 3)
        np.testing.assert_allclose(shuffled[own, own], np.eye(3), atol=1e-4)
    assert np.abs(shuffled[:3, 3:6]).max() > 0.1


def test_one_channel_per_group_standardises_in_whatever_order():
    expected = (CORRELATED - CORRELATED.mean(0)) / CORRELATED.std(0)
    shuffled = w.group_whiten(array(CORRELATED), jnp.asarray(PERMUTATION), num_groups=12, epsilon=0.0)
    plain = w.group_whiten(array(CORRELATED), num_groups=12, epsilon=0.0)
    np.testing.assert_allclose(shuffled, expected, atol=1e-5)
    np.testing.assert_allclose(plain, expected, atol=1e-5)


def test_one_group_is_full_zca_in_whatever_order():
    values, vectors = np.linalg.eigh(covariance(CORRELATED))
    expected = (CORRELATED - CORRELATED.mean(0)) @ vectors @ np.diag(values**-0.5) @ vectors.T
    with jax.enable_x64(True):
        for permutation in (None, jnp.asarray(PERMUTATION)):
            white = w.group_whiten(jnp.asarray(CORRELATED), permutation, num_groups=1, epsilon=0.0)
            np.testing.assert_allclose(white, expected, atol=1e-8)


def test_zca_leaves_white_data_alone_and_pca_turns_it():
    white = RNG.standard_normal((4000, 6))
    zca, pca = (np.asarray(w.fit_whitening(array(white), method=m).apply(array(white))) for m in ("zca", "pca"))
    assert np.abs(zca - white).max() < 0.3
    assert np.abs(np.abs(pca) - np.abs(white)).max() > 1
    np.testing.assert_allclose(covariance(pca), np.eye(6), atol=1e-4)


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_gradient_is_that_of_a_fixed_matrix(method):
    """Finite differences of the map whose matrices are held fixed at the point."""
    cotangent = RNG.standard_normal((64, 12))
    options = {"num_groups": 4, "epsilon": 1e-3, "method": method}
    with jax.enable_x64(True):
        x, permutation = jnp.asarray(CORRELATED), jnp.asarray(PERMUTATION)

        @functools.partial(jax.jit, static_argnums=1)
        def pulled_back(x, differentiable):
            white = functools.partial(w.group_whiten, differentiable=differentiable, **options)
            return jax.grad(lambda v: jnp.vdot(white(v, permutation), cotangent))(x)

        gradient, through = (np.asarray(pulled_back(x, differentiable)) for differentiable in (False, True))

        def value(x, matrix_from):
            groups = (x - x.mean(0))[:, PERMUTATION].reshape(64, 4, 3)
            fixed = (matrix_from - matrix_from.mean(0))[:, PERMUTATION].reshape(64, 4, 3)
            blocks = np.einsum("ngi,ngj->gij", fixed, fixed) / 64
            blocks = blocks + 1e-3 * np.trace(blocks, axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)
            values, vectors = np.linalg.eigh(blocks)
            matrices = np.einsum("gik,gk,gjk->gij", vectors, values**-0.5, vectors)
            white = np.einsum("ngi,gij->ngj", groups, matrices).reshape(64, 12)[:, np.argsort(PERMUTATION)]
            return np.vdot(white, cotangent)

    for direction in RNG.standard_normal((3, 64, 12)):
        step = 1e-6 * direction
        frozen = (value(CORRELATED + step, CORRELATED) - value(CORRELATED - step, CORRELATED)) / 2e-6
        moving = (value(CORRELATED + step, CORRELATED + step) - value(CORRELATED - step, CORRELATED - step)) / 2e-6
        assert np.vdot(gradient, direction) == pytest.approx(frozen, rel=1e-5, abs=1e-5)
        assert np.vdot(through, direction) == pytest.approx(moving, rel=1e-5, abs=1e-5)
        assert abs(frozen - moving) > 1e-2


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_fewer_rows_than_channels_stay_finite(method):
    few = array(RNG.standard_normal((4, 12)) + 100)
    options = {"num_groups": 1, "epsilon": 1e-5, "method": method}
    white = np.asarray(jax.jit(lambda v: w.group_whiten(v, jnp.asarray(PERMUTATION), **options))(few))
    assert 0.1 < np.abs(white).max() < 5
    for differentiable in (False, True):
        gradient = jax.grad(lambda v, d=differentiable: jnp.sum(w.group_whiten(v, differentiable=d, **options) ** 3))
        assert np.isfinite(np.asarray(jax.jit(gradient)(few))).all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_constant_channels_become_zero(epsilon):
    """0.1 and 1e4 / 3 have no exact sum in float32: what is left of them after centring is rounding."""
    x = CORRELATED.copy()
    x[:, 2], x[:, 4] = 0.1, 1e4 / 3
    x[:, 9:] = np.array([0.1, -7.3, 1e-3])  # a whole group
    white = np.asarray(w.group_whiten(array(x[:63]), num_groups=4, epsilon=epsilon))
    assert (white[:, 9:] == 0).all()
    assert np.abs(white[:, [2, 4]]).max() < 1e-3  # eigenvectors turn by rounding, and epsilon's root divides it
    np.testing.assert_allclose(covariance(white[:, [0, 1]]), np.eye(2), atol=1e-3)
    zero = np.asarray(w.group_whiten(jnp.zeros((8, 12)), num_groups=4, epsilon=epsilon))
    assert (zero == 0).all()


def test_bfloat16_is_computed_in_float32():
    half = array(CORRELATED).astype(jnp.bfloat16)
    white = w.group_whiten(half, num_groups=4, epsilon=1e-5)
    assert white.dtype == jnp.float32
    np.testing.assert_allclose(white, w.group_whiten(half.astype(jnp.float32), num_groups=4, epsilon=1e-5), atol=1e-6)


def test_statistics_are_global_on_a_mesh():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))

    def loss(x):
        return jnp.sum(w.group_whiten(x, jnp.asarray(PERMUTATION), num_groups=4, epsilon=1e-5) ** 3)

    one = jax.jit(jax.value_and_grad(loss))(array(CORRELATED))
    split = jax.device_put(array(CORRELATED), batch_sharding(mesh))
    many = jax.jit(jax.value_and_grad(loss))(split)
    assert len(many[1].sharding.device_set) == 8
    np.testing.assert_allclose(many[0], one[0], rtol=1e-4)
    np.testing.assert_allclose(many[1], one[1], atol=1e-4 * np.abs(np.asarray(one[1])).max())


# ---- views -----------------------------------------------------------------------------------------------

VIEWS = CORRELATED[None] + 0.5 * RNG.standard_normal((3, 64, 12))


def sgw(layout, key=3, views=VIEWS):
    whiten = jax.jit(w.shuffled_group_whitening, static_argnames=("num_groups", "epsilon", "layout"))
    return np.asarray(whiten(jax.random.key(key), array(views), num_groups=4, epsilon=0.0, layout=layout))


def permutations(key=3):
    return [np.asarray(jax.random.permutation(k, 12)) for k in jax.random.split(jax.random.key(key), 3)]


def test_view_major_whitens_each_view_by_itself():
    for view, result, permutation in zip(VIEWS, sgw("view_major"), permutations(), strict=True):
        np.testing.assert_allclose(result, torch_group_whiten(view, permutation, 4), atol=1e-3)


def test_interleaved_layout_is_that_of_the_published_code():
    rows = np.stack([VIEWS[v, i] for i in range(64) for v in range(3)])  # s1v1, s1v2, s1v3, s2v1, ...
    thirds = [torch_group_whiten(rows[64 * k : 64 * (k + 1)], p, 4) for k, p in enumerate(permutations())]
    expected = np.concatenate(thirds).reshape(64, 3, 12).transpose(1, 0, 2)
    result = sgw("repo_interleaved")
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert np.abs(result - sgw("view_major")).max() > 0.1


def test_one_permutation_or_none_for_all_views():
    permutation = np.asarray(jax.random.permutation(jax.random.key(3), 12))
    for layout, order in (("same_permutation", permutation), ("no_shuffle", np.arange(12))):
        for view, result in zip(VIEWS, sgw(layout), strict=True):
            np.testing.assert_allclose(result, torch_group_whiten(view, order, 4), atol=1e-3)


def test_views_of_one_array_differ_only_by_the_shuffle():
    same = np.repeat(CORRELATED[None], 3, axis=0)
    shuffled, plain = sgw("view_major", views=same), sgw("no_shuffle", views=same)
    assert np.abs(shuffled[0] - shuffled[1]).max() > 0.1
    np.testing.assert_allclose(plain[0], plain[1], atol=1e-6)
    assert np.abs(sgw("view_major", key=4) - sgw("view_major", key=3)).max() > 0.1


# ---- running statistics ----------------------------------------------------------------------------------


@pytest.mark.parametrize("permutation", [None, PERMUTATION])
def test_statistics_of_the_batch_whiten_the_batch(permutation):
    order = None if permutation is None else jnp.asarray(permutation)
    statistics = w.batch_statistics(array(CORRELATED))
    np.testing.assert_allclose(statistics.covariance, covariance(CORRELATED), rtol=1e-4, atol=1e-4)
    options = {"num_groups": 4, "epsilon": 1e-5}
    np.testing.assert_allclose(
        w.group_whiten(array(CORRELATED), order, statistics=statistics, **options),
        w.group_whiten(array(CORRELATED), order, **options),
        atol=1e-3,
    )
    alone = w.group_whiten(array(CORRELATED[:1]), order, statistics=statistics, **options)
    whole = w.group_whiten(array(CORRELATED), order, statistics=statistics, **options)
    np.testing.assert_allclose(alone, whole[:1], atol=1e-5)


def test_running_statistics_forget_geometrically():
    start, target = (w.batch_statistics(array(x)) for x in (CORRELATED, 2 * CORRELATED + 1))
    running = start
    for _ in range(5):
        running = w.update_statistics(running, target, momentum=0.3)
    for a, b, c in zip(*(jax.tree.leaves(s) for s in (running, start, target)), strict=True):
        np.testing.assert_allclose(a, 0.7**5 * b + (1 - 0.7**5) * c, rtol=1e-5, atol=1e-5)


# ---- finished embeddings ---------------------------------------------------------------------------------


def test_pca_whitening_equals_the_singular_value_decomposition():
    _, values, directions = np.linalg.svd(CORRELATED - CORRELATED.mean(0), full_matrices=False)
    expected = (CORRELATED - CORRELATED.mean(0)) @ directions.T / values * np.sqrt(64)
    with jax.enable_x64(True):
        fitted = w.fit_whitening(jnp.asarray(CORRELATED), method="pca", num_components=5)
        result = np.asarray(fitted.apply(jnp.asarray(CORRELATED)))
    assert result.shape == (64, 5)
    np.testing.assert_allclose(np.abs(result), np.abs(expected[:, :5]), atol=1e-8)


@pytest.mark.parametrize("method", ["zca", "pca"])
def test_fitting_embeddings_without_full_rank_is_finite(method):
    flat = array(np.concatenate([CORRELATED[:5], np.full((5, 2), 0.1)], axis=1))
    for epsilon in (0.0, 1e-5):
        result = np.asarray(w.fit_whitening(flat, method=method, epsilon=epsilon).apply(flat))
        assert np.isfinite(result).all()
        assert np.abs(result).max() < 5


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: w.group_whiten(x, num_groups=5, epsilon=0.1), "do not divide 12 channels"),
        (lambda x: w.group_whiten(x, num_groups=0, epsilon=0.1), "do not divide"),
        (lambda x: w.group_whiten(x[:1], num_groups=4, epsilon=0.1), "2 or more"),
        (lambda x: w.group_whiten(x, num_groups=4, epsilon=-1e-5), "epsilon must be 0 or more"),
        (lambda x: w.group_whiten(x[0], num_groups=4, epsilon=0.1), r"\[n, dim\]"),
        (lambda x: w.group_whiten(x.at[3, 1].set(jnp.nan), num_groups=4, epsilon=0.1), "first row 3"),
        (lambda x: w.group_whiten(x, jnp.arange(11), num_groups=4, epsilon=0.1), "12 integers"),
        (lambda x: w.group_whiten(x, jnp.zeros(12, int), num_groups=4, epsilon=0.1), "each of 0..11 once"),
        (
            lambda x: w.group_whiten(x, num_groups=4, epsilon=0.1, statistics=w.batch_statistics(x[:, :8])),
            "statistics are of 8 channels",
        ),
        (lambda x: w.group_whiten(x, num_groups=4, epsilon=0.1, method="cholesky"), "method must be"),
        (lambda x: w.zca_matrix(x, epsilon=0.1), r"\[groups, c, c\]"),
        (lambda x: w.shuffled_group_whitening(jax.random.key(0), x, num_groups=4, epsilon=0.1), r"\[views, batch"),
        (
            lambda x: w.shuffled_group_whitening(jax.random.key(0), x[:, None], num_groups=4, epsilon=0.1),
            "each view must hold 2",
        ),
        (
            lambda x: w.shuffled_group_whitening(jax.random.key(0), x[None], num_groups=4, epsilon=0.1, layout="rows"),
            "layout must be",
        ),
        (lambda x: w.batch_statistics(x[:1]), "2 or more"),
        (lambda x: w.update_statistics(w.batch_statistics(x), w.batch_statistics(x), momentum=0.0), "momentum"),
        (lambda x: w.fit_whitening(x, method="cca"), "'zca' or 'pca'"),
        (lambda x: w.fit_whitening(x, num_components=3), "keeps all channels"),
        (lambda x: w.fit_whitening(x, method="pca", num_components=13), r"1\.\.12"),
        (lambda x: w.fit_whitening(x).apply(x[:, :5]), "fitted to 12 channels"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(array(CORRELATED))
