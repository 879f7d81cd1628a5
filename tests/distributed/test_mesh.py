import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxcore.distributed import AXES, MeshConfig, batch_sharding, check_batch, make_mesh, replicated


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1, 1)),
        (MeshConfig(fsdp=4), (1, 2, 4, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (1, 2, 2, 2)),
        (MeshConfig(replica=2, data=1, fsdp=2, tensor=2), (2, 1, 2, 2)),
    ],
)
def test_shape_and_axes(config, shape):
    mesh = make_mesh(config)
    assert mesh.axis_names == AXES and mesh.devices.shape == shape
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert {device.id for device in mesh.devices.flat} == set(range(8))


def test_subset_of_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (MeshConfig(data=3), "needs 3 devices, found 8"),
        (MeshConfig(fsdp=3), "not a multiple of 3"),
        (MeshConfig(fsdp=-1), "at most one"),
        (MeshConfig(data=0), "positive"),
        (MeshConfig(data=-2), "positive"),
    ],
)
def test_bad_sizes(config, says):
    with pytest.raises(ValueError, match=says):
        make_mesh(config)


def test_slices_lie_along_replica():
    """Devices that carry a slice index are arranged so that only `replica` crosses slices."""

    class Device:
        platform, device_kind, process_index = "gpu", "imaginary", 0

        def __init__(self, identity, slice_index):
            self.id, self.slice_index = identity, slice_index

    devices = [Device(identity, identity % 2) for identity in range(8)]
    from jaxcore.distributed.mesh import _arrange

    array = _arrange((2, 2, 2, 1), devices, 2)
    slices = np.vectorize(lambda device: device.slice_index)(array)
    assert (slices[0] == slices[0].flat[0]).all() and (slices[1] == 1 - slices[0].flat[0]).all()
    with pytest.raises(ValueError, match="multiple of 2"):
        _arrange((1, 4, 2, 1), devices, 2)


def test_batch_and_replicated_sharding():
    mesh = make_mesh(MeshConfig(replica=2, data=2, fsdp=2))
    rows = jax.device_put(np.arange(16.0).reshape(8, 2), batch_sharding(mesh))
    assert {shard.data.shape for shard in rows.addressable_shards} == {(1, 2)}
    assert replicated(mesh).spec == PartitionSpec()


def test_check_batch():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))  # four batch shards
    check_batch(mesh, 12, 3)
    with pytest.raises(ValueError, match=r"multiple of 4, for example 8 or 12"):
        check_batch(mesh, 10, 1)
    with pytest.raises(ValueError, match=r"3 process\(es\).*multiple of 12, for example 12"):
        check_batch(mesh, 4, 3)
    with pytest.raises(ValueError):
        check_batch(mesh, 0, 1)
