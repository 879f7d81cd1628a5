"""Against programs whose traffic is known by hand, compiled here, and against lines as TPU compilers write
them."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxcore.distributed import (
    Collective,
    CollectiveTotal,
    MeshConfig,
    make_mesh,
    read_collectives,
    total_by_kind,
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=4, fsdp=2))


def read(function, mesh, spec, out_spec, shape=(32, 16)):
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=out_spec, check_vma=False)
    sharding = NamedSharding(mesh, spec)
    lowered = jax.jit(mapped, in_shardings=sharding).lower(jax.ShapeDtypeStruct(shape, jnp.float32))
    return read_collectives(lowered.compile().as_text() or "")


def test_all_gather(mesh):
    (item,) = read(lambda x: jax.lax.all_gather(x, "data", tiled=True), mesh, P("data"), P())
    assert item == Collective("all-gather", 32 * 16 * 4, 1, (0, 2, 4, 6))


def test_reduce_scatter(mesh):
    (item,) = read(lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), mesh, P(), P("fsdp"))
    assert (item.kind, item.bytes, item.group) == ("reduce-scatter", 32 * 16 * 4, (0, 1))


def test_all_reduce_in_a_loop(mesh):
    def function(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(jax.lax.psum(x, "data")), None), x, None, length=5)[0]

    totals = total_by_kind(read(function, mesh, P("data"), P("data")))
    assert totals == {"all-reduce": CollectiveTotal(5, 5 * 8 * 16 * 4)}


def test_permute_and_all_to_all(mesh):
    ring = [(at, (at + 1) % 4) for at in range(4)]
    (permute,) = read(lambda x: jax.lax.ppermute(x, "data", ring), mesh, P("data"), P("data"))
    assert (permute.kind, permute.bytes) == ("collective-permute", 8 * 16 * 4)
    pairs = set(zip(permute.group[::2], permute.group[1::2], strict=True))
    assert {(0, 2), (2, 4), (4, 6), (6, 0)} <= pairs
    (exchange,) = read(
        lambda x: jax.lax.all_to_all(x, "data", split_axis=1, concat_axis=0, tiled=True),
        mesh,
        P("data"),
        P(None, "data"),
    )
    assert (exchange.kind, exchange.bytes) == ("all-to-all", 8 * 16 * 4)


def entry(*lines):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\nENTRY %main (x: f32[64,256]) -> f32[] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("{{0,1},{2,3}}", (0, 1)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=4,'b'=2] {'a'}", (0, 2, 4, 6)),
        ("mesh['a'=4,'b'=1,'c'=4], device_ids=([4,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("mesh['a'=8] {'a':(1)2}", ()),
        ("{}", ()),
    ],
)
def test_three_notations_of_groups(groups, expected):
    line = f"%r = f32[64,256]{{1,0:T(8,128)}} all-reduce(%x), replica_groups={groups}, to_apply=%add"
    (item,) = read_collectives(entry(line))
    assert item.group == expected and item.bytes == 64 * 256 * 4


def test_asynchronous_starts_count_once():
    text = entry(
        "%x = f32[64,256]{1,0} parameter(0)",
        "%g = (f32[64,256]{1,0}, f32[256,256]{1,0}) all-gather-start(%x), replica_groups={{0,1,2,3}}, dimensions={0}",
        "%gd = f32[256,256]{1,0} all-gather-done(%g)",
        "%p = (f32[64,256]{1,0}, f32[64,256]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), "
        "source_target_pairs={{0,1},{1,0}}",
        "%pd = f32[64,256]{1,0} collective-permute-done(%p)",
        "%r = f32[64,256]{1,0} all-reduce-start(%x), replica_groups={{0,1}}, to_apply=%add",
        "%rd = f32[64,256]{1,0} all-reduce-done(%r)",
    )
    assert [(item.kind, item.bytes) for item in read_collectives(text)] == [
        ("all-gather", 256 * 256 * 4),
        ("collective-permute", 64 * 256 * 4),
        ("all-reduce", 64 * 256 * 4),
    ]


FUSIONS = """\
HloModule m

%all-reduce-scatter.1 (input: f32[256,256]) -> f32[64,256] {
  %input = f32[256,256]{1,0} parameter(0)
  %all-reduce.1 = f32[256,256]{1,0} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3}}
  ROOT %slice = f32[64,256]{1,0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={64,256}
}

%fused_computation.1 (p: f32[64,256]) -> f32[256,256] {
  %p = f32[64,256]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[256,256]{1,0} all-gather(%p), channel_id=14, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%async_collective_fusion.2 (p2: f32[64,256]) -> f32[256,256] {
  %p2 = f32[64,256]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[256,256]{1,0} all-gather(%p2), channel_id=14, \
replica_groups={{0,1,2,3}}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%wrapped (p3: f32[256,256]) -> f32[64,256] {
  %p3 = f32[256,256]{1,0} parameter(0)
  ROOT %rs = f32[64,256]{1,0} reduce-scatter(%p3), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (x: f32[64,256]) -> f32[] {
  %x = f32[64,256]{1,0} parameter(0)
  %a = f32[256,256]{1,0} fusion(%x), kind=kOutput, calls=%fused_computation.1
  %b = f32[256,256]{1,0} fusion(%x), kind=kOutput, calls=%async_collective_fusion.2
  %c = f32[64,256]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %s = ((f32[256,256]{1,0}), f32[64,256]{1,0}, u32[]) async-start(%b), calls=%wrapped
  %d = f32[64,256]{1,0} async-done(%s), calls=%wrapped
  %send = (f32[1,128]{1,0}, u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
}
"""


def test_fusions_of_tpu_compilers():
    """all-reduce-scatter is a reduce-scatter; a gather spread over fusions is one; wrappers and slices
    count once."""
    size = 256 * 256 * 4
    assert total_by_kind(read_collectives(FUSIONS)) == {
        "all-gather": CollectiveTotal(1, size),
        "reduce-scatter": CollectiveTotal(2, 2 * size),
        "dcn-all-reduce": CollectiveTotal(1, 128 * 4),
    }
