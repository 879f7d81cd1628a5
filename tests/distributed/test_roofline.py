"""Closed forms against cases worked by hand (milliseconds with three digits), and against the jaxpr walk."""

import math
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import pytest

from jaxcore.distributed import (
    CHIPS,
    Collective,
    CompiledStep,
    ContrastiveWorkload,
    FlopCount,
    contrastive_parts,
    count_flops,
    encoder_flops,
    format_weak_scaling,
    parse_topology,
    predict,
    predict_compiled,
)
from jaxcore.distributed import roofline as room

POD = parse_topology("v5e:16x16")
VIT_AND_TEXT = ContrastiveWorkload(
    forward_flops_per_row=41.3e9, parameters=149.6e6, rows_per_chip=64, embedding_width=512
)


def milliseconds(parts):
    return {part.name: 1e3 * part.seconds for part in parts}


def test_vit_and_text_on_v5e_256():
    parts = milliseconds(contrastive_parts(VIT_AND_TEXT, POD))
    assert parts["encoder matmul"] == pytest.approx(80.5, rel=2e-3)
    assert parts["loss matmul"] == pytest.approx(0.04, abs=5e-3)
    assert parts["loss exchange"] == pytest.approx(0.28, abs=5e-3)
    assert parts["gradient traffic"] == pytest.approx(6.6, abs=0.05)
    assert predict(contrastive_parts(VIT_AND_TEXT, POD)).bottleneck.name == "encoder matmul"
    keys, gradients = room.gather_bytes(global_batch=16384, width=512)
    assert (keys, gradients) == (16_777_216, 33_554_432)
    as_all_reduce = room.gather_seconds(keys + 2 * gradients, chips=256, bandwidth=room.torus_bandwidth(POD))
    assert 1e3 * as_all_reduce == pytest.approx(0.46, abs=6e-3)
    ring = room.ring_seconds(room.ring_bytes(global_batch=16384, width=512), chips=256, chip=POD.chip)
    assert 1e3 * ring == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize(
    ("pod", "encoder", "loss", "exchange", "ring"),
    [("v5e:16x16", 179, 8.4, 3.3, 17.8), ("v6e:16x16", 38, 1.8, 1.7, 8.9)],
)
def test_minilm_pairs(pod, encoder, loss, exchange, ring):
    """b 1024, N 262144, d 384; two towers of 6 layers x 384 over 128 tokens."""
    topology = parse_topology(pod)
    tower = encoder_flops(parameters=6 * 12 * 384**2, tokens=128, layers=6, width=384)
    workload = ContrastiveWorkload(2 * tower, parameters=22e6, rows_per_chip=1024, embedding_width=384)
    parts = milliseconds(contrastive_parts(workload, topology))
    assert parts["encoder matmul"] == pytest.approx(encoder, rel=0.012)
    assert parts["loss matmul"] == pytest.approx(loss, rel=0.012)
    assert parts["loss exchange"] == pytest.approx(exchange, rel=0.02)
    one_way = room.ring_seconds(room.ring_bytes(global_batch=262144, width=384), chips=256, chip=topology.chip)
    assert 1e3 * one_way == pytest.approx(ring, rel=0.01)
    assert room.dense_logits_bytes(rows_per_chip=1024, global_batch=262144) == 2**30


@pytest.mark.parametrize(("chip", "gather", "ring"), [("v5e", 821, 4378), ("v5p", 638, 5100), ("v6e", 1912, 10200)])
def test_rows_from_which_the_loss_is_compute_bound(chip, gather, ring):
    rows = room.rows_to_be_compute_bound(CHIPS[chip], axes=CHIPS[chip].torus_axes, wrap=True)
    assert rows == (pytest.approx(gather, abs=1), pytest.approx(ring, abs=1))


def test_weak_scaling_line():
    """Encoder, loss and traffic at the same rows per chip: 93.1, 93.8 and 87.5 ms without the optimiser's
    part."""
    shapes = [parse_topology(f"v5e:{side}x{side}") for side in (4, 8, 16)]
    totals = []
    for topology in shapes:
        parts = milliseconds(contrastive_parts(VIT_AND_TEXT, topology))
        totals.append(sum(parts.values()) - parts["optimiser memory"])
    assert totals == [
        pytest.approx(93.1, abs=0.1),
        pytest.approx(93.8, abs=0.15),
        pytest.approx(87.5, abs=0.1),
    ]
    line = format_weak_scaling(VIT_AND_TEXT, shapes)
    assert "16: " in line and "64: " in line and "(no wrap)" in line


def test_parameter_traffic():
    link = 4 * 45e9  # two axes, both directions
    assert room.gradient_seconds(1e9, POD) == pytest.approx(8e9 * 255 / 256 / link)
    assert room.gradient_seconds(1e9, POD, layout="fsdp") == pytest.approx(8e9 * 255 / 256 / link)
    two = parse_topology("v5e:16x16:2")
    across = room.gradient_seconds(1e9, two) - room.gradient_seconds(1e9, POD)
    assert across == pytest.approx(2 * 0.5 * 4e9 / 256 / 3.1e9)
    assert room.optimizer_bytes(1e9, shards=4) == 7e9
    assert room.training_multiple() == 3
    assert room.training_multiple(full_rematerialisation=True, gradient_cache=True) == 5


@pytest.mark.parametrize("causal", [False, True])
def test_encoder_form_against_the_walk(causal):
    """A plain transformer trunk counted by the walk: within 2 %, causal attention being masked, not
    skipped."""
    layers, width, tokens, heads = 3, 64, 32, 4
    shapes = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
    }
    ws = {name: jax.ShapeDtypeStruct((layers, *shape), jnp.float32) for name, shape in shapes.items()}

    def block(x, w):
        q, k, v = jnp.split((x @ w["qkv"]).reshape(tokens, heads, -1), 3, axis=-1)
        attention = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", q, k))
        x = x + jnp.einsum("hqk,khd->qhd", attention, v).reshape(tokens, width) @ w["out"]
        return x + jax.nn.gelu(x @ w["up"]) @ w["down"], None

    x = jax.ShapeDtypeStruct((tokens, width), jnp.float32)
    counted = count_flops(lambda x, ws: jax.lax.scan(block, x, ws)[0], x, ws).hardware
    parameters = layers * sum(math.prod(shape) for shape in shapes.values())
    form = encoder_flops(parameters=parameters, tokens=tokens, layers=layers, width=width, causal=causal)
    skipped = 2 * layers * tokens**2 * width if causal else 0
    assert counted - skipped == pytest.approx(form, rel=0.02)


def compiled(collectives, *, topology="v5e:4x4", flops=0, state=0):
    shape = parse_topology(topology)
    coordinates = tuple((row, column, 0) for row in range(shape.shape[0]) for column in range(shape.shape[1]))
    return CompiledStep(
        name="step",
        topology=shape,
        num_devices=shape.num_chips,
        fits=True,
        refusal="",
        argument_bytes=state,
        output_bytes=0,
        temporary_bytes=0,
        alias_bytes=0,
        needed_bytes=state,
        usable_bytes=shape.chip.memory_bytes,
        compile_seconds=0.0,
        flops=FlopCount(flops),
        compiled_flops_per_chip=0,
        collectives=tuple(collectives),
        coordinates=coordinates,
        versions="",
        executable=Mock(spec=jax.stages.Compiled),
    )


@pytest.mark.parametrize(
    ("topology", "kind", "group", "bytes_over", "hops"),
    [
        ("v5e:4x4", "all-gather", tuple(range(4)), 0.75 / 45e9, 3),  # one open axis
        ("v5e:4x4", "all-gather", (), 15 / 16 / 90e9, 6),  # both open axes
        ("v5e:16x16", "all-gather", tuple(range(16)), 15 / 16 / 90e9, 8),  # one ring
        ("v5e:16x16", "reduce-scatter", (), 255 / 256 / 180e9, 16),  # both rings
        ("v5e:16x16", "all-gather", tuple(range(8)), 7 / 8 / 45e9, 7),  # half of a ring is open
        ("v5e:16x16", "all-reduce", tuple(range(16)), 2 * 15 / 16 / 90e9, 16),
    ],
)
def test_collectives_follow_the_torus(topology, kind, group, bytes_over, hops):
    step = compiled([], topology=topology)
    seconds = room.collective_seconds(Collective(kind, 10**9, 3, group), step)
    assert seconds == pytest.approx(3 * (1e9 * bytes_over + hops * 1e-6), rel=1e-6)


def test_permute_pays_its_longest_hop_and_slices_the_network():
    step = compiled([])
    neighbour = Collective("collective-permute", 10**9, 1, (0, 1, 1, 2))
    far = Collective("collective-permute", 10**9, 1, (0, 1, 0, 15))
    assert room.collective_seconds(far, step) / room.collective_seconds(neighbour, step) == pytest.approx(6, rel=1e-3)
    across = Collective("dcn-all-reduce", 31 * 10**8, 2, ())
    assert room.collective_seconds(across, step) == pytest.approx(2.0)
    assert room.collective_seconds(Collective("all-gather", 10**9, 1, (3,)), step) == 0.0


def test_bracket_and_bottleneck():
    step = compiled([Collective("all-gather", 9 * 10**7, 1, (0, 1))], flops=16 * int(197e9), state=int(819e6))
    prediction = predict_compiled(step)
    assert milliseconds(prediction.parts)["matmul"] == pytest.approx(2.0)
    assert milliseconds(prediction.parts)["state in memory"] == pytest.approx(1.0)
    assert prediction.lower == pytest.approx(2e-3) and prediction.bottleneck.name == "matmul"
    assert prediction.upper == pytest.approx(2e-3 + 1e-3 + 1e-3, rel=1e-2)


def test_a_report_reads_as_promised():
    step = compiled([Collective("all-gather", 16_777_216, 1, (0, 1, 2, 3))], flops=16 * 10**12, state=2**30)
    text = room.format_report(step, experiment="star", preset="pod", weak="upper end 16: 1 ms")
    lines = text.splitlines()
    assert lines[0].startswith("star  pod  step  v5e-16 (4x4, 1 slice)")
    assert lines[1].startswith("HBM      1.00 of 15.75 GiB") and lines[1].endswith("fits")
    assert lines[2].startswith("FLOPs    1.00 T model / 1.00 T hardware per chip")
    assert lines[3] == "ICI      all-gather 16.8 MB in 1  (as compiled)"
    assert lines[4].startswith("predict  10.2 ms (overlap) .. ") and "bottleneck: matmul" in lines[4]
    assert "MFU <= 50 %" in lines[4] and lines[5] == "weak     upper end 16: 1 ms"
