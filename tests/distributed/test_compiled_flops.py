import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcore.distributed import MeshConfig, count_flops, make_mesh
from jaxcore.distributed.compiled_flops import compiled_flops


def test_scanned_program_on_one_device():
    def function(x, ws):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

    x, ws = jax.ShapeDtypeStruct((64, 96), jnp.float32), jax.ShapeDtypeStruct((5, 96, 96), jnp.float32)
    compiled = jax.jit(function).lower(x, ws).compile()
    assert compiled_flops(compiled.as_text() or "") == count_flops(function, x, ws).hardware == 5 * 2 * 64 * 96 * 96


def test_share_of_a_sharded_program_and_a_replicated_one():
    mesh = make_mesh(MeshConfig())
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x, w = jax.ShapeDtypeStruct((64, 96), jnp.float32), jax.ShapeDtypeStruct((96, 96), jnp.float32)

    def count(sharding):
        function = jax.jit(lambda x, w: x @ w, in_shardings=(sharding, whole), out_shardings=sharding)
        return compiled_flops(function.lower(x, w).compile().as_text() or "")

    assert count(rows) == 2 * 64 * 96 * 96 // 8
    assert count(whole) == 2 * 64 * 96 * 96


BATCHED = """\
HloModule m, entry_computation_layout={()->f32[]}

ENTRY %main.1 (a: bf16[8,128,4,64], b: bf16[8,128,4,64]) -> bf16[8,4,128,128] {
  %a = bf16[8,128,4,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,128,4,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = bf16[8,4,128,128]{2,3,1,0:T(8,128)(2,1)S(1)} convolution(%a, %b), \
window={size=8x4 stride=7x3 lhs_dilate=8x4}, dim_labels=0b1f_0o1i->01bf
}
"""


def test_batched_matmul_that_a_tpu_writes_as_a_dilated_convolution():
    """q k^T for 8 rows of 4 heads: dilation holes must cost nothing."""
    assert compiled_flops(BATCHED) == 2 * 8 * 4 * 128 * 128 * 64
