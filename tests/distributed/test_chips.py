import pytest

from jaxcore.distributed.chips import CHIPS, chip_for_device_kind, parse_topology


@pytest.mark.parametrize(
    ("name", "chip", "shape", "chips", "wrap"),
    [
        ("v5e:16x16", "v5e", (16, 16), 256, (True, True)),
        ("v5e:4x4", "v5e", (4, 4), 16, (False, False)),
        ("v5e:8x16", "v5e", (8, 16), 128, (False, True)),
        ("v6e:8x8", "v6e", (8, 8), 64, (False, False)),
        ("v5p:4x4x4", "v5p", (4, 4, 4), 64, (True, True, True)),
        ("v5p:2x2x4", "v5p", (2, 2, 4), 16, (False, False, False)),
    ],
)
def test_topology_names(name, chip, shape, chips, wrap):
    topology = parse_topology(name)
    assert (topology.chip.name, topology.shape, topology.num_chips, topology.wrap) == (
        chip,
        shape,
        chips,
        wrap,
    )
    assert topology.slice_name == name and topology.num_slices == 1


def test_several_slices():
    topology = parse_topology("v5e:4x4:2")
    assert (topology.num_slices, topology.num_chips, topology.slice_name) == (2, 32, "v5e:4x4")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5e", "form"),
        ("v9x:4x4", "v5p"),
        ("h100:8", "choose one of"),
        ("v5e:4x4x4", "2 axes, got 3"),
        ("v5p:4x4", "3 axes, got 2"),
        ("v5e:0x4", "at least 1"),
    ],
)
def test_bad_names_say_how_to_mend(name, says):
    with pytest.raises(ValueError, match=says) as caught:
        parse_topology(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("cpu", None),
    ],
)
def test_chip_for_device_kind(kind, name):
    chip = chip_for_device_kind(kind)
    assert (chip.name if chip else None) == name


def test_peaks_are_dense_not_sparse():
    # The leaflets of both GPUs print 1979 TFLOP/s, which is with sparsity.
    assert CHIPS["h100"].peak_flops == CHIPS["h200"].peak_flops == 989.4e12
