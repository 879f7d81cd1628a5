"""RISE: a coordinate matters as much as the score of randomly masked inputs in which it can be seen."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxcore.attribution.chunking import chunked_sum
from jaxcore.attribution.feature_groups import Groups, masked_score
from jaxcore.attribution.input_checks import (
    Baseline,
    Inputs,
    Score,
    accumulation_dtype,
    broadcast_baseline,
    check_positive,
    check_score,
    checked_finite,
)
from jaxcore.attribution.shapley import row_uniform


def rise(
    score: Score,
    inputs: Inputs,
    key: Array,
    *,
    baseline: Baseline = 0.0,
    spatial_axes: tuple[int, int] = (1, 2),
    grid: tuple[int, int] = (7, 7),
    keep_probability: float = 0.5,
    num_samples: int = 4000,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """Saliency of an image from smooth random masks.

        S(x) = 1 / (p M) sum_m score(x' + m (x - x')) m

    Each mask is a grid of Bernoulli(p) cells, one cell larger than the image in each direction, upsampled bilinearly
    and cropped at a random offset, so that every pixel is kept p of the time. The batch shares the masks. The values
    are means of scores, not differences: compare them within an image.

    Args:
        score: maps inputs to [batch]; example b's score may depend on example b only.
        inputs: images, [batch, height, width, channels] or another layout; of a pytree, all leaves have one height and
            width.
        key: a `jax.random.key`.
        baseline: x', broadcast against `inputs`.
        spatial_axes: the axes of height and width: (1, 2), or (2, 3) for [batch, channels, height, width].
        grid: cells of a mask over the image's height and width.
        keep_probability: p.
        num_samples: M, evaluations of the score.
        chunk_size: samples evaluated together; by default as many as fit `memory_budget`.
        memory_budget: bytes of temporary memory a chunk may take.

    Returns:
        The saliency map, the same on every channel, of the inputs' structure and shapes, in float32 (float64 for
        float64 inputs).

    Raises:
        ValueError: inputs without the spatial axes or of several sizes, a grid finer than the image, keep_probability
            not in (0, 1), bad inputs, baseline or score, values that are not finite.

    Source: Petsiuk et al. 2018, "Random Masking" and "Mask Generation".
    """
    batch = check_score(score, inputs)
    check_positive(num_samples=num_samples, chunk_size=chunk_size)
    _check_probability(keep_probability)
    size = _image_size(inputs, spatial_axes, grid)
    baseline = broadcast_baseline(baseline, inputs)
    dtype = jnp.result_type(*[accumulation_dtype(leaf) for leaf in jax.tree.leaves(inputs)])

    def term(sample: Array) -> Array:
        mask = smooth_mask(jax.random.fold_in(key, sample), size, grid, keep_probability)
        masked = jax.tree.map(
            lambda x, b: (b + _placed(mask, x, spatial_axes).astype(x.dtype) * (x - b)).astype(x.dtype),
            inputs,
            baseline,
        )
        return score(masked).astype(dtype)[:, None, None] * mask.astype(dtype)

    total = chunked_sum(term, jnp.arange(num_samples), chunk_size=chunk_size, memory_budget=memory_budget)
    saliency = total / (keep_probability * num_samples)

    def on_leaf(x: Array) -> Array:
        maps = saliency.reshape(batch, *_placed(saliency[0], x, spatial_axes).shape[1:])
        return jnp.broadcast_to(maps, x.shape).astype(accumulation_dtype(x))

    return checked_finite(jax.tree.map(on_leaf, inputs), "rise")


def rise_over_groups(
    score: Score,
    inputs: Inputs,
    key: Array,
    *,
    baseline: Baseline = 0.0,
    groups: Groups = None,
    keep_probability: float = 0.5,
    num_samples: int = 4000,
    chunk_size: int | None = None,
    memory_budget: int | None = None,
) -> Inputs:
    """RISE with features kept or dropped as a whole: tokens, words, segments of an image.

        S_f(x) = 1 / (p M) sum_m score(x with the features of z_m) z_mf,   z_m ~ Bernoulli(p)

    Args:
        groups: the features, see `jaxcore.attribution.feature_groups`; by default every coordinate by itself.
        score, inputs, key, baseline, keep_probability, num_samples, chunk_size, memory_budget: as in `rise`, for inputs
            [batch, ...] of any shape. Each example has masks of its own.

    Returns:
        Means of scores of the inputs' structure and shapes (every coordinate carries its feature's value), in float32
        (float64 for float64 inputs); 0 where there is no feature.

    Raises:
        ValueError: keep_probability not in (0, 1), bad inputs, baseline, groups or score, values that are not finite.

    Source: Petsiuk et al. 2018, "Random Masking".
    """
    check_positive(num_samples=num_samples, chunk_size=chunk_size)
    _check_probability(keep_probability)
    game = masked_score(score, inputs, baseline, groups)

    def term(sample: Array) -> Array:
        keep = row_uniform(jax.random.fold_in(key, sample), game.present.shape) < keep_probability
        return game(keep)[:, None] * keep

    total = chunked_sum(term, jnp.arange(num_samples), chunk_size=chunk_size, memory_budget=memory_budget)
    return game.attributions(total / (keep_probability * num_samples), "rise_over_groups")


def smooth_mask(key: Array, size: tuple[int, int], grid: tuple[int, int], keep_probability: float) -> Array:
    """A random mask [height, width] with values in [0, 1]; each value's mean is `keep_probability`."""
    grid_key, offset_key = jax.random.split(key)
    cells = jax.random.bernoulli(grid_key, keep_probability, grid).astype(jnp.float32)
    cell = tuple(-(-axis // n) for axis, n in zip(size, grid, strict=True))
    shape = tuple((n + 1) * step for n, step in zip(grid, cell, strict=True))
    upsampled = jax.image.resize(cells, shape, "linear")
    offset = jax.random.randint(offset_key, (2,), 0, jnp.asarray(cell))
    return jax.lax.dynamic_slice(upsampled, (offset[0], offset[1]), size)


def _placed(mask: Array, inputs: Array, spatial_axes: tuple[int, int]) -> Array:
    """The mask [height, width] with axes of 1 wherever the inputs have others."""
    rows, columns = spatial_axes
    ordered = mask if rows < columns else mask.T
    return ordered.reshape([inputs.shape[axis] if axis in spatial_axes else 1 for axis in range(inputs.ndim)])


def _image_size(inputs: Inputs, spatial_axes: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
    rows, columns = spatial_axes
    if rows == columns or any(not 1 <= axis < len(shape) for axis in spatial_axes for shape in shapes):
        raise ValueError(f"spatial_axes {spatial_axes} must be two axes of the images other than the batch's: {shapes}")
    sizes = {(shape[rows], shape[columns]) for shape in shapes}
    if len(sizes) > 1:
        raise ValueError(f"rise masks all images alike, so they need one height and width: got {sorted(sizes)}")
    size = sizes.pop()
    if any(not 1 <= n <= axis for n, axis in zip(grid, size, strict=True)):
        raise ValueError(f"grid must have 1 to {size} cells, the image's height and width: got {grid}")
    return size


def _check_probability(keep_probability: float) -> None:
    if not 0 < keep_probability < 1:
        raise ValueError(f"keep_probability must lie between 0 and 1: got {keep_probability}")
