"""Linear layers and norms over rows: the shapes that run fast on every backend, CPU included.

Inputs of any shape (..., features) are flattened to rows (batch * time, features) before the matrix product,
and biases and norm scales are spread over the rows by a matrix product with a column of ones. Values are what
the plain formulas give; the difference lies in the derivatives that JAX then derives. A weight's gradient
becomes one 2-D product x' g (on three axes XLA CPU first writes out the transpose of g), and a bias's
gradient a product 1' g (XLA CPU sums columns fifteen times slower than it multiplies by ones). TPU
compilers reduce all of it to the plain forms. `tests/benchmarks/encoder_speed.py` has the measurements.

Few rows (decoding) are another matter: such a product takes the time of reading the kernel. XLA CPU reads it two to
three times as fast if it is stored output by output and stands on the left: `x W = (W' x')'` (`by_outputs`).
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FEW_ROWS = 64
"""Up to so many rows reading the kernel takes longer than multiplying by it."""


def linear(
    x: Float[Array, "... features"],
    kernel: Float[Array, "features outputs"] | Float[Array, "outputs features"],
    bias: Float[Array, "outputs"] | None,
    *,
    dtype: Any,
    by_outputs: bool = False,
) -> Float[Array, "... outputs"]:
    """`x W + b`, or `x W` without a bias, computed in `dtype`.

    Args:
        by_outputs: the kernel is W', stored output by output.
    """
    rows, kernel = as_rows(x).astype(dtype), kernel.astype(dtype)
    product = times_outputs(rows, kernel) if by_outputs else rows @ kernel
    if bias is not None:
        product = product + over_rows(bias.astype(dtype), len(rows))
    return product.reshape(*x.shape[:-1], -1)


def times_outputs(
    rows: Float[Array, "rows features"], kernel: Float[Array, "outputs features"], *, result_type: Any = None
) -> Float[Array, "rows outputs"]:
    """`x W` from W', in the order of products that is fastest for the number of rows.

    Args:
        result_type: dtype that products are summed and returned in; None = that of the arguments.
    """
    if jax.default_backend() != "cpu" or len(rows) > FEW_ROWS:
        return jax.lax.dot_general(rows, kernel, (((1,), (1,)), ((), ())), preferred_element_type=result_type)
    columns = jax.lax.optimization_barrier(rows.T)  # or the compiler turns the product around again
    product = jax.lax.dot(kernel, columns, preferred_element_type=result_type)
    return jax.lax.optimization_barrier(product).T


def layer_norm(
    x: Float[Array, "... features"],
    scale: Float[Array, "features"],
    bias: Float[Array, "features"],
    *,
    epsilon: float,
    dtype: Any,
) -> Float[Array, "... features"]:
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` over the last axis (Ba et al. 2016).

    Computed in float32 and returned in `dtype`. The variance is the mean of squared deviations, not the
    difference of mean squares, which cancels.
    """
    rows = as_rows(x).astype(jnp.float32)
    centred = rows - rows.mean(1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(1, keepdims=True) + epsilon)
    count = len(rows)
    result = normal * over_rows(scale.astype(jnp.float32), count) + over_rows(bias.astype(jnp.float32), count)
    return result.astype(dtype).reshape(x.shape)


def rms_norm(
    x: Float[Array, "... features"], scale: Float[Array, "features"], *, epsilon: float, dtype: Any
) -> Float[Array, "... features"]:
    """`x / sqrt(mean(x^2) + epsilon) * scale` over the last axis (Zhang & Sennrich 2019).

    Computed in float32 and returned in `dtype`.
    """
    rows = as_rows(x).astype(jnp.float32)
    normal = rows * jax.lax.rsqrt(jnp.square(rows).mean(1, keepdims=True) + epsilon)
    return (normal * over_rows(scale.astype(jnp.float32), len(rows))).astype(dtype).reshape(x.shape)


def as_rows(x: Float[Array, "... features"]) -> Float[Array, "rows features"]:
    """All axes but the last as one."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def over_rows(vector: Float[Array, "features"], count: int) -> Float[Array, "rows features"]:
    """The vector on each of `count` rows, as the outer product 1 v': its gradient is then a product too.

    On CPU the compiler turns the product itself into a broadcast that costs nothing; on TPU it turns both
    into what plain broadcasting gives, a broadcast and a fused sum. Exact: each entry is one product by 1.
    """
    column, row = jnp.ones((count, 1), vector.dtype), vector.reshape(1, -1)
    return jnp.matmul(column, row, precision=jax.lax.Precision.HIGHEST)


BY_OUTPUTS = "{}_by_outputs"
"""Name of a kernel that is stored output by output, after its own name."""


class Linear(nn.Module):
    """`linear` with parameters `kernel` and `bias`, annotated with logical axis names (inputs, outputs).

    Where `kernel_by_outputs` is among the parameters (`jaxcore.models.unstack_layers`), it takes the kernel's place.
    """

    features: int
    axes: tuple[str | None, str | None]
    dtype: Any
    kernel_init: nn.initializers.Initializer
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... outputs"]:
        by_outputs = self.has_variable("params", BY_OUTPUTS.format("kernel"))
        kernel: Any
        if by_outputs:
            kernel = self.get_variable("params", BY_OUTPUTS.format("kernel"))
        else:
            kernel_init = nn.with_logical_partitioning(self.kernel_init, self.axes)
            kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = None
        if self.use_bias:
            bias_init = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[1:])
            bias = jnp.asarray(self.param("bias", bias_init, (self.features,), jnp.float32))
        return linear(x, jnp.asarray(kernel), bias, dtype=self.dtype, by_outputs=by_outputs)


class LayerNorm(nn.Module):
    """`layer_norm` with parameters `scale` and `bias` on the logical axis "norm"."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... features"]:
        shape = (x.shape[-1],)
        scale_init = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        scale = self.param("scale", scale_init, shape, jnp.float32)
        bias_init = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("norm",))
        bias = self.param("bias", bias_init, shape, jnp.float32)
        return layer_norm(x, jnp.asarray(scale), jnp.asarray(bias), epsilon=self.epsilon, dtype=self.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a parameter `scale` on the logical axis "norm"."""

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "... features"]) -> Float[Array, "... features"]:
        init = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        scale = self.param("scale", init, (x.shape[-1],), jnp.float32)
        return rms_norm(x, jnp.asarray(scale), epsilon=self.epsilon, dtype=self.dtype)
