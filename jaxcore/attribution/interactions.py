"""What features do together: second-order attributions, similarities shared out over pairs, tokens that mix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxcore.attribution.chunking import chunked_map
from jaxcore.attribution.feature_groups import (
    FeatureGroups,
    Groups,
    feature_groups,
    masked_inputs,
    masked_score,
    sum_per_feature,
)
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_inputs,
    check_positive,
    checked_finite,
)
from jaxcore.attribution.integrated_gradients import Quadrature, quadrature_rule
from jaxcore.transforms import activation_names, capture, intervene

Encode = Callable[[Inputs], Float[Array, "batch dim"]]


def integrated_hessians(
    score: Score,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    num_steps: int = 50,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch features features"]:
    """Integrated gradients of integrated gradients: how a score's change is shared out over pairs of features.

        I_ij = d_i d_j int int a b H_ij(x' + a b d) da db + [i = j] d_i int int g_i(x' + a b d) da db,   d = x - x'

    with gradient g and Hessian H of the score, summed over the coordinates of each feature. Completeness: an example's
    matrix sums to ``score(x) - score(x')``, and its rows to the integrated gradients.

    The product t = a b of two uniform numbers has density ``-log t``: one Gauss rule for that weight takes the place of
    the double integral, and Hessian-vector products, one per feature and node, that of the Hessian. A network of ReLUs
    has no Hessian almost everywhere: replace them by softplus.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: a pytree of floating-point arrays [batch, ...].
        baseline: x', broadcast against `inputs`.
        groups: the features, see `jaxcore.attribution.feature_groups`; by default every coordinate by itself.
            Coordinates without a feature stay at x along the path.
        num_steps: nodes of the rule, exact for scores that are polynomials of degree 2 num_steps along the path.
        chunk_size: features differentiated together; by default as many as fit `memory_budget`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        Symmetric matrices over features in order of their numbers, in float32 (float64 for float64 inputs); 0 in rows
        and columns an example lacks.

    Raises:
        ValueError: bad inputs, baseline, groups or score, num_steps < 1, values that are not finite.

    Source: Janizek et al. 2021, section 3.2 and definition 1.
    """
    check_positive(num_steps=num_steps, chunk_size=chunk_size)
    game = masked_score(score, inputs, baseline, groups)
    start, difference = _path(inputs, game.baseline, game.groups)
    features = jnp.arange(game.groups.count)
    gradient = jax.grad(lambda x: jnp.sum(score(x)))
    nodes, weights = product_rule(num_steps)
    rule = (jnp.asarray(nodes, game.dtype), jnp.asarray(weights, game.dtype))

    def column(feature: Array) -> Array:
        direction = _of_feature(difference, game.groups, feature)

        def add_node(total: Array, node_and_weight: tuple[Array, Array]) -> tuple[Array, None]:
            node, weight = node_and_weight
            point = jax.tree.map(lambda b, d: (b + node * d).astype(b.dtype), start, difference)
            tangent = jax.tree.map(lambda d, b: d.astype(b.dtype), direction, start)
            slope, curvature = jax.jvp(gradient, (point,), (tangent,))
            pairs = sum_per_feature(jax.tree.map(jnp.multiply, difference, curvature), game.groups)
            own = sum_per_feature(jax.tree.map(jnp.multiply, direction, slope), game.groups)
            return total + weight * (node * pairs + own).astype(game.dtype), None

        return jax.lax.scan(add_node, jnp.zeros(game.present.shape, game.dtype), rule)[0]

    columns = chunked_map(column, features, chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(jnp.moveaxis(columns, 0, 2), "integrated_hessians")


def integrated_jacobian(
    encode: Encode,
    inputs: Inputs,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    num_steps: int = 50,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch features dim"]:
    """Integrated gradients of every output of an encoder at once: the share of each feature in the embedding.

        F_f = int_0^1 J(x' + a (x - x')) (x - x')_f da,   sum_f F_f = encode(x) - encode(x')

    One forward-mode derivative per feature and node; no array grows with (inputs x outputs).

    Args:
        encode: maps inputs to [batch, dim]; example b's embedding may depend on example b only.
        inputs, baseline, groups, chunk_size, memory_budget: as in `integrated_hessians`.
        num_steps, quadrature: as in `integrated_gradients`.

    Raises:
        ValueError: an embedding that is not [batch, dim], and as in `integrated_gradients`.

    Source: Moeller et al. 2023 (an attribution method for Siamese encoders).
    """
    batch = check_inputs(inputs)
    check_positive(num_steps=num_steps, chunk_size=chunk_size)
    _check_embedding(encode, inputs, batch)
    resolved = feature_groups(groups, inputs)
    start, difference = _path(inputs, broadcast_baseline(baseline, inputs), resolved)
    dtype = jnp.result_type(*jax.tree.leaves(difference))
    nodes, weights = quadrature_rule(quadrature, num_steps)
    rule = (jnp.asarray(nodes, dtype), jnp.asarray(weights, dtype))

    def share(feature: Array) -> Array:
        direction = _of_feature(difference, resolved, feature)
        tangent = jax.tree.map(lambda d, b: d.astype(b.dtype), direction, start)

        def derivative(node: Array) -> Array:
            point = jax.tree.map(lambda b, d: (b + node * d).astype(b.dtype), start, difference)
            return jax.jvp(encode, (point,), (tangent,))[1].astype(dtype)

        def add_node(total: Array, node_and_weight: tuple[Array, Array]) -> tuple[Array, None]:
            node, weight = node_and_weight
            return total + weight * derivative(node), None

        zeros = jnp.zeros(jax.eval_shape(derivative, rule[0][0]).shape, dtype)
        return jax.lax.scan(add_node, zeros, rule)[0]

    shares = chunked_map(share, jnp.arange(resolved.count), chunk_size=chunk_size, memory_budget=memory_budget)
    return checked_finite(jnp.moveaxis(shares, 0, 1), "integrated_jacobian")


def similarity_pairs(
    encoders: tuple[Encode, Encode],
    inputs: tuple[Inputs, Inputs],
    *,
    baseline: tuple[Baseline, Baseline] = (0.0, 0.0),
    groups: tuple[Groups, Groups] = (None, None),
    num_steps: int = 50,
    quadrature: Quadrature = "gauss_legendre",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "batch left right"]:
    """How a similarity ``<f(x), g(y)>`` is shared out over pairs of a feature of x and a feature of y.

        A_ij = <F_i, G_j>,   F, G: the integrated Jacobians of f at x and of g at y
        sum_ij A_ij = <f(x), g(y)> - <f(x'), g(y)> - <f(x), g(y')> + <f(x'), g(y')>

    The three reference terms vanish for references whose embeddings are 0 or that are similar to nothing. For a cosine
    similarity let the encoders return unit vectors.

    Args:
        encoders: f and g, each inputs -> [batch, dim]; the same function twice for one encoder without masks.
        inputs: x and y, two pytrees of floating-point arrays of one batch.
        baseline: x' and y'.
        groups: the features of x and those of y (`token_groups` of each text's mask).
        num_steps, quadrature, chunk_size, memory_budget: as in `integrated_jacobian`.

    Returns:
        One matrix per pair of examples: features of x by features of y; 0 where an example lacks a feature.

    Raises:
        ValueError: not two encoders, inputs, baselines and groups; embeddings of different widths or batches; and as in
            `integrated_jacobian`.

    Source: Moeller et al. 2023; pairs as products of one-sided factors: Eberle et al. 2020 (BiLRP).
    """
    for name, pair in {"encoders": encoders, "inputs": inputs, "baseline": baseline, "groups": groups}.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"{name} must be a pair, one for each side of the similarity: got a {type(pair).__name__}")
    batches = [check_inputs(side) for side in inputs]
    widths = [_check_embedding(f, x, n) for f, x, n in zip(encoders, inputs, batches, strict=True)]
    if batches[0] != batches[1] or widths[0] != widths[1]:
        raise ValueError(f"both sides need one batch and one width: got batches {batches} and embeddings of {widths}")
    options: Any = {"num_steps": num_steps, "quadrature": quadrature}
    options |= {"chunk_size": chunk_size, "memory_budget": memory_budget}
    left, right = (
        integrated_jacobian(encode, side, baseline=reference, groups=features, **options)
        for encode, side, reference, features in zip(encoders, inputs, baseline, groups, strict=True)
    )
    return jnp.einsum("bid,bjd->bij", left, right, precision="highest")


def value_zeroing(
    run: Callable[[], Any],
    mask: Bool[Array, "batch time"] | Int[Array, "batch time"],
    *,
    attention_weights: str = "attention_weights",
    layer_output: str = "layer_output",
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Float[Array, "layers batch time time"]:
    """How much each token's vector after a layer owes to each token's value vector in that layer.

        C_l[i, j] = 1 - cos(h_l,i, h_l,i with value j of layer l at zero),   rows normalised to sum to 1

    A token's value is taken away by taking away the attention paid to it, after the softmax: in ``sum_j a_ij v_j``
    the two are the same. One run of the model per token serves all layers, each of which is given its original input.

    Args:
        run: runs an encoder on its batch (``lambda: model.apply(variables, ids, mask)``) whose blocks are one
            `jax.lax.scan` (as in `jaxcore.models.Encoder`) and name their activations.
        mask: nonzero at real tokens; the rows and columns of others are 0.
        attention_weights: name of the weights [batch, heads, time, time], which exist where attention is "explicit".
        layer_output: name of what a block hands on, [batch, time, hidden].
        chunk_size: tokens taken away together; by default as many as fit `memory_budget`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        Non-negative matrices [layers, batch, time, time] whose rows sum to 1 (to 0 where nothing changes a token).

    Raises:
        ValueError: names that do not occur or are not in one scan over layers, a mask of another shape or without
            tokens, values that are not finite.

    Source: Mohebbi et al. 2023, section 3.
    """
    check_positive(chunk_size=chunk_size)
    time = _check_run(run, mask, attention_weights, layer_output)
    real = jnp.asarray(mask) != 0
    original: Any = capture(run, layer_output)()[1][layer_output]

    def changes(token: Array) -> Array:
        def hand_on(h: Array, *, step: Array) -> Array:
            # What the block made is named, to be captured; the next block gets the original. The barrier keeps the
            # named value, which nothing else uses, in the program.
            return jax.lax.optimization_barrier((checkpoint_name(h, _CHANGED), original[step]))[1]

        zeroed: Any = {attention_weights: lambda a: a * (jnp.arange(time) != token).astype(a.dtype)}
        edited = intervene(run, {**zeroed, layer_output: hand_on})
        changed: Any = capture(edited, _CHANGED)()[1][_CHANGED]
        return _cosine_distance(original, changed)

    distances = chunked_map(changes, jnp.arange(time), chunk_size=chunk_size, memory_budget=memory_budget)
    scores = jnp.where(real[:, :, None] & real[:, None, :], jnp.moveaxis(distances, 0, 3), 0)
    total = jnp.sum(scores, axis=-1, keepdims=True)
    return checked_finite(jnp.where(total > 0, scores / jnp.where(total > 0, total, 1), 0), "value_zeroing")


_CHANGED = "layer_output_without_one_value"


def product_rule(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes and weights for ``int_0^1 int_0^1 f(a b) da db = int_0^1 -log(t) f(t) dt``, float64.

    Golub & Welsch 1969: nodes are eigenvalues of the Jacobi matrix, here found by Lanczos steps on a product of two
    Gauss-Legendre rules, which is the same measure as far as polynomials of degree 2 num_steps - 1 can tell.
    """
    nodes, weights = quadrature_rule("gauss_legendre", num_steps + 1)
    points, masses = np.outer(nodes, nodes).ravel(), np.outer(weights, weights).ravel()
    basis = [np.sqrt(masses)]
    diagonal, off_diagonal = [], []
    for _ in range(num_steps):
        vector = points * basis[-1]
        diagonal.append(vector @ basis[-1])
        for _ in range(2):  # twice is enough: orthogonal to working precision
            for direction in basis:
                vector = vector - (vector @ direction) * direction
        off_diagonal.append(np.linalg.norm(vector))
        basis.append(vector / off_diagonal[-1])
    jacobi = np.diag(diagonal) + np.diag(off_diagonal[:-1], 1) + np.diag(off_diagonal[:-1], -1)
    values, vectors = np.linalg.eigh(jacobi)
    return values, vectors[0] ** 2


def _path(inputs: Inputs, baseline: Inputs, groups: FeatureGroups) -> tuple[Inputs, Inputs]:
    """Start and difference of the straight path; coordinates without a feature do not move."""
    start = masked_inputs(inputs, baseline, groups, jnp.zeros((1, groups.count), bool))
    return start, jax.tree.map(lambda x, b: (x - b).astype(accumulation_dtype(x)), inputs, start)


def _of_feature(difference: Inputs, groups: FeatureGroups, feature: Array) -> Inputs:
    return jax.tree.map(lambda d, ids: jnp.where(ids == feature, d, 0), difference, groups.ids)


def _check_embedding(encode: Encode, inputs: Inputs, batch: int) -> int:
    shape = getattr(jax.eval_shape(encode, inputs), "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != batch:
        raise ValueError(f"an encoder must return embeddings [{batch}, dim]: got shape {shape}")
    return shape[1]


def _check_run(run: Callable[[], Any], mask: Array, weights: str, output: str) -> int:
    shapes = activation_names(run)
    missing = [name for name in (weights, output) if name not in shapes]
    if missing:
        raise ValueError(
            f"value_zeroing needs {', '.join(map(repr, missing))}: names that occur are "
            f"{', '.join(map(repr, shapes))}; "
            "attention weights exist where attention_implementation='explicit'"
        )
    dimensions: dict[str, tuple] = {name: getattr(shapes[name], "shape", ()) for name in (weights, output)}
    if len(dimensions[weights]) != 5 or len(dimensions[output]) != 4:
        raise ValueError(
            f"value_zeroing needs blocks in one scan, {weights} [layers, batch, heads, time, time] and {output} "
            f"[layers, batch, time, hidden]: got {dimensions}"
        )
    _, batch, time, _ = dimensions[output]
    if jnp.shape(mask) != (batch, time):
        raise ValueError(f"mask must be [{batch}, {time}], the model's tokens: got {jnp.shape(mask)}")
    if not isinstance(mask, jax.core.Tracer) and not np.asarray(mask).any(axis=1).all():
        raise ValueError("the mask leaves nothing to attribute: every text needs at least one token")
    return time


def _cosine_distance(a: Array, b: Array) -> Array:
    """``1 - cos`` as half the squared distance of the unit vectors, which keeps small angles; 1 where one is zero."""
    a, b = (vectors.astype(accumulation_dtype(vectors)) for vectors in (a, b))
    squares = [jnp.sum(vectors * vectors, axis=-1, keepdims=True) for vectors in (a, b)]
    exist = (squares[0] > 0) & (squares[1] > 0)
    a, b = (
        vectors * jax.lax.rsqrt(jnp.where(exist, square, 1)) for vectors, square in zip((a, b), squares, strict=True)
    )
    return jnp.where(exist[..., 0], jnp.sum((a - b) ** 2, axis=-1) / 2, 1)
