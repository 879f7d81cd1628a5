"""How long a step must take: closed forms, and a prediction from what a program was compiled to.

Symbols, as in the formulas below: F peak FLOP/s times the attainable fraction, H memory bytes/s, W one-way
bytes/s of a link, a torus axes used, w = 2 with wrap else 1, D bytes/s per chip between slices; n chips per
slice, m slices, b rows per chip, N = b n m, d embedding width, s = 2 bytes of a bf16 value, g = 4 of an f32
gradient, P parameters, T tokens per row, L layers. The answer is always a bracket: from the largest part
(perfect overlap) to the sum (none).
Nothing here was timed on hardware: the attainable fraction 0.5 stands until it is calibrated.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from jaxcore.distributed.ahead_of_time import CompiledStep
from jaxcore.distributed.chips import GIB, Chip, Topology
from jaxcore.distributed.collectives import Collective

__all__ = [
    "ATTAINABLE",
    "ContrastiveWorkload",
    "Part",
    "Prediction",
    "collective_seconds",
    "contrastive_flops_per_chip",
    "contrastive_parts",
    "dense_logits_bytes",
    "encoder_flops",
    "format_report",
    "format_weak_scaling",
    "gather_bytes",
    "gather_seconds",
    "gradient_seconds",
    "optimizer_bytes",
    "predict",
    "predict_compiled",
    "ring_bytes",
    "ring_seconds",
    "rows_to_be_compute_bound",
    "torus_bandwidth",
    "training_multiple",
]

ATTAINABLE = 0.5
VALUE_BYTES = 2
GRADIENT_BYTES = 4
HOP_SECONDS = 1e-6


# Encoder and loss: FLOPs


def encoder_flops(*, parameters: float, tokens: int, layers: int, width: int, causal: bool = False) -> float:
    """Forward FLOPs of one row through one tower: ``2 P T + 4 L T^2 width`` (the second term halved if
    causal).

    Args:
      parameters: of the blocks, without embedding tables.
      tokens: T, tokens per row.
      layers: L.
      width: of the residual stream.
      causal: whether a position attends to earlier ones only.
    """
    attention = 4 * layers * tokens**2 * width
    return 2 * parameters * tokens + (attention / 2 if causal else attention)


def training_multiple(*, full_rematerialisation: bool = False, gradient_cache: bool = False) -> int:
    """Forward passes that a training step costs: 3, one more with full remat, one more with a gradient cache."""
    return 3 + full_rematerialisation + gradient_cache


def contrastive_flops_per_chip(*, global_batch: int, width: int, chips: int) -> float:
    """``8 N^2 d / (n m)``: one similarity matrix for both directions, recomputed backward."""
    return 8 * global_batch**2 * width / chips


def dense_logits_bytes(*, rows_per_chip: int, global_batch: int) -> int:
    """``4 b N`` bytes of float32 logits per chip, which the streaming engine never forms."""
    return 4 * rows_per_chip * global_batch


# Communication


def gather_bytes(*, global_batch: int, width: int) -> tuple[int, int]:
    """All-gather layout, bytes per chip: keys ``N d s`` gathered, gradients ``N d g`` scattered."""
    return global_batch * width * VALUE_BYTES, global_batch * width * GRADIENT_BYTES


def ring_bytes(*, global_batch: int, width: int) -> int:
    """Ring layout, bytes per chip: ``N d (2 s + g)``, keys again backward together with their gradient."""
    return global_batch * width * (2 * VALUE_BYTES + GRADIENT_BYTES)


def gather_seconds(size: float, *, chips: int, bandwidth: float, hops: int = 0) -> float:
    """All-gather or reduce-scatter of an array of `size` bytes: ``size (n - 1)/n / bandwidth`` + 1 us per hop."""
    return size * (chips - 1) / chips / bandwidth + hops * HOP_SECONDS


def ring_seconds(size: float, *, chips: int, chip: Chip) -> float:
    """One-way ring: the same bytes over one direction of one link; overlappable hop by hop."""
    return size * (chips - 1) / chips / chip.link_bandwidth


def torus_bandwidth(topology: Topology) -> float:
    """Bytes/s in which a chip takes part when a collective uses all axes of a slice: ``sum over axes of w
    W``."""
    axes = [2 if wraps else 1 for size, wraps in zip(topology.shape, topology.wrap, strict=True) if size > 1]
    return sum(axes or [1]) * topology.chip.link_bandwidth


def gradient_seconds(parameters: float, topology: Topology, *, layout: Literal["data", "fsdp"] = "data") -> float:
    """Parameter traffic of one step.

    Data parallel: ``2 P g`` (an all-reduce). FSDP: ``P (2 s + g)`` (two gathers, one scatter). Several
    slices: reduced inside the slice first, then ``2 (m - 1)/m P g / n`` per chip over the network.
    """
    size = parameters * (2 * GRADIENT_BYTES if layout == "data" else 2 * VALUE_BYTES + GRADIENT_BYTES)
    seconds = gather_seconds(size, chips=topology.chips_per_slice, bandwidth=torus_bandwidth(topology))
    slices = topology.num_slices
    across = 2 * (slices - 1) / slices * parameters * GRADIENT_BYTES / topology.chips_per_slice
    return seconds + across / topology.chip.network_bandwidth


def rows_to_be_compute_bound(chip: Chip, *, axes: int, wrap: bool, attainable: float = 1.0) -> tuple[float, float]:
    """Rows per chip from which the loss's matmuls take longer than its communication: (all-gather, one-way
    ring).

    ``F (s + g) / (8 a w W)`` and ``F (2 s + g) / (8 W)``; independent of width and of the number of chips.
    """
    speed = chip.peak_flops * attainable / 8
    gathered = (VALUE_BYTES + GRADIENT_BYTES) / (axes * (2 if wrap else 1) * chip.link_bandwidth)
    ring = (2 * VALUE_BYTES + GRADIENT_BYTES) / chip.link_bandwidth
    return speed * gathered, speed * ring


def optimizer_bytes(parameters: float, *, shards: int = 1) -> float:
    """``28 P / shards``: an Adam update reads and writes parameters and two moments and reads gradients."""
    return 28 * parameters / shards


# Predictions


@dataclasses.dataclass(frozen=True)
class Part:
    """A resource that a step needs for `seconds`, and what would make it less."""

    name: str
    seconds: float
    remedy: str


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Bracket of a step's time: `lower` with perfect overlap, `upper` with none."""

    parts: tuple[Part, ...]

    @property
    def lower(self) -> float:
        return max(part.seconds for part in self.parts)

    @property
    def upper(self) -> float:
        return sum(part.seconds for part in self.parts)

    @property
    def bottleneck(self) -> Part:
        return max(self.parts, key=lambda part: part.seconds)


def predict(parts: Sequence[Part]) -> Prediction:
    """The bracket over parts; zero-length ones are dropped."""
    return Prediction(tuple(part for part in parts if part.seconds > 0) or (Part("nothing", 0.0, ""),))


@dataclasses.dataclass(frozen=True)
class ContrastiveWorkload:
    """A contrastive training step in the numbers that decide its time.

    Attributes:
      forward_flops_per_row: of all towers, `encoder_flops` summed.
      parameters: P, trained.
      rows_per_chip: b.
      embedding_width: d.
      multiple: `training_multiple`.
      loss_layout: how keys travel.
      parameter_layout: replicated or sharded parameters.
    """

    forward_flops_per_row: float
    parameters: float
    rows_per_chip: int
    embedding_width: int
    multiple: int = 3
    loss_layout: Literal["all-gather", "ring"] = "all-gather"
    parameter_layout: Literal["data", "fsdp"] = "data"


def contrastive_parts(
    workload: ContrastiveWorkload, topology: Topology, *, attainable: float = ATTAINABLE
) -> tuple[Part, ...]:
    """Parts of a contrastive step on a topology, from closed forms alone (no compilation)."""
    chip, chips = topology.chip, topology.num_chips
    speed = chip.peak_flops * attainable
    batch = workload.rows_per_chip * chips
    width = workload.embedding_width
    encoder = workload.multiple * workload.forward_flops_per_row * workload.rows_per_chip
    loss = contrastive_flops_per_chip(global_batch=batch, width=width, chips=chips)
    if workload.loss_layout == "all-gather":
        size = sum(gather_bytes(global_batch=batch, width=width))
        exchange = gather_seconds(size, chips=chips, bandwidth=torus_bandwidth(topology))
    else:
        exchange = ring_seconds(ring_bytes(global_batch=batch, width=width), chips=chips, chip=chip)
    slices = topology.num_slices
    between = (slices - 1) / slices * batch * width * VALUE_BYTES / topology.chips_per_slice
    shards = topology.chips_per_slice if workload.parameter_layout == "fsdp" else 1
    return (
        Part("encoder matmul", encoder / speed, "fewer tokens per row, less rematerialisation, or more chips"),
        Part("loss matmul", loss / speed, "fewer rows per chip"),
        Part(
            "loss exchange",
            exchange + between / chip.network_bandwidth,
            "more rows per chip, or a ring per axis",
        ),
        Part(
            "gradient traffic",
            gradient_seconds(workload.parameters, topology, layout=workload.parameter_layout),
            "more rows per chip, or accumulate gradients",
        ),
        Part(
            "optimiser memory",
            optimizer_bytes(workload.parameters, shards=shards) / chip.memory_bandwidth,
            "shard the optimiser state (fsdp)",
        ),
    )


def collective_seconds(collective: Collective, step: CompiledStep) -> float:
    """Seconds per step of one compiled collective: its bytes over the torus axes that its group spans.

    An axis counts twice if the group spans all of it and it wraps. All-to-all takes ``n / 4`` of its bytes on
    a ring; a permute its longest hop; a transfer between slices the network's rate.
    """
    if step.topology is None:
        return 0.0
    chip = step.topology.chip
    if collective.kind.startswith("dcn-"):
        return collective.executions * collective.bytes / chip.network_bandwidth
    group = collective.group or tuple(range(step.num_devices))
    size = len(set(group))
    if size <= 1:
        return 0.0
    if collective.kind == "collective-permute":
        hops = max(_hops(step, group[at], group[at + 1]) for at in range(0, len(group), 2))
        return collective.executions * (hops * collective.bytes / chip.link_bandwidth + HOP_SECONDS)
    bandwidth, hops = _group_bandwidth(step, group)
    times = {"all-reduce": 2.0, "all-to-all": size / 4, "ragged-all-to-all": size / 4}.get(collective.kind, 1.0)
    seconds = times * gather_seconds(collective.bytes, chips=size, bandwidth=bandwidth, hops=hops)
    return collective.executions * seconds


def _group_bandwidth(step: CompiledStep, group: Sequence[int]) -> tuple[float, int]:
    """(bytes/s, hops) of a collective over a group of partitions, from where they lie on the torus."""
    assert step.topology is not None
    topology = step.topology
    if not step.coordinates:
        return torus_bandwidth(topology), 0
    places = [step.coordinates[partition] for partition in group]
    rate, hops = 0.0, 0
    for axis, (length, wraps) in enumerate(zip(topology.shape, topology.wrap, strict=True)):
        spanned = len({place[axis] for place in places})
        if spanned > 1:
            closed = wraps and spanned == length
            rate += (2 if closed else 1) * topology.chip.link_bandwidth
            hops += spanned // 2 if closed else spanned - 1
    return (rate or topology.chip.link_bandwidth), hops


def _hops(step: CompiledStep, source: int, target: int) -> int:
    if not step.coordinates or step.topology is None:
        return 1
    total = 0
    for axis, (length, wraps) in enumerate(zip(step.topology.shape, step.topology.wrap, strict=True)):
        distance = abs(step.coordinates[source][axis] - step.coordinates[target][axis])
        total += min(distance, length - distance) if wraps else distance
    return max(total, 1)


def predict_compiled(step: CompiledStep, *, attainable: float = ATTAINABLE) -> Prediction:
    """The bracket for a compiled step on its topology.

    Matmuls are those of the executable, collectives as compiled. Memory counts only what every step must
    move, its arguments in and its outputs out; activations travel too, so this part is a lower bound.

    Raises:
      ValueError: the step was not compiled for a named topology, or does not fit.
    """
    if step.topology is None or step.executable is None:
        raise ValueError(f"{step.name}: a prediction needs a step that compiled for a named topology")
    chip = step.topology.chip
    work = max(step.compiled_flops_per_chip, step.hardware_flops_per_chip)
    by_kind: dict[str, float] = {}
    for item in step.collectives:
        by_kind[item.kind] = by_kind.get(item.kind, 0.0) + collective_seconds(item, step)
    parts = [Part("matmul", work / (chip.peak_flops * attainable), "less rematerialisation, or more chips")]
    parts += [
        Part(kind, seconds, "more rows per chip, or another mesh shape") for kind, seconds in sorted(by_kind.items())
    ]
    state = (step.argument_bytes + step.output_bytes) / chip.memory_bandwidth
    parts.append(Part("state in memory", state, "shard the state (mesh.fsdp)"))
    return predict(parts)


# The block that `compile` prints


def format_report(
    step: CompiledStep,
    *,
    experiment: str = "",
    preset: str = "",
    attainable: float = ATTAINABLE,
    weak: str = "",
) -> str:
    """Text block about one compiled step: memory, FLOPs, collectives, predicted time.

    Args:
      step: from `compile_step`.
      experiment: its name.
      preset: its preset.
      attainable: fraction of the peak that matmuls reach.
      weak: a line on weak scaling, from `format_weak_scaling`.
    """
    lines = [_title(step, experiment, preset), _memory_line(step), _flops_line(step)]
    if step.executable is not None:
        lines.append(f"ICI      {_collectives_text(step)}  (as compiled)")
        if step.topology is not None:
            lines.append(_prediction_line(step, attainable))
    if weak:
        lines.append(f"weak     {weak}")
    lines += _warnings(step)
    return "\n".join(lines)


def _title(step: CompiledStep, experiment: str, preset: str) -> str:
    where = f"{step.num_devices} devices"
    if (topology := step.topology) is not None:
        slices = f"{topology.num_slices} slice" + ("s" if topology.num_slices > 1 else "")
        shape = "x".join(map(str, topology.shape))
        where = f"{topology.chip.name}-{topology.num_chips} ({shape}, {slices})"
    names = "  ".join(filter(None, (experiment, preset, step.name)))
    verb = "compiled" if step.executable is not None else "refused"
    return f"{names}  {where}  {step.versions}  {verb} in {step.compile_seconds:.1f} s"


def _memory_line(step: CompiledStep) -> str:
    usable = f" of {step.usable_bytes / GIB:.2f}" if step.usable_bytes else ""
    if step.executable is None:
        return f"HBM      {_gib(step.needed_bytes)}{usable} GiB  DOES NOT FIT: {step.refusal}"
    detail = (
        f"(arguments {_gib(step.argument_bytes)}, outputs {_gib(step.output_bytes)}, donated "
        f"{_gib(step.alias_bytes)}, temporaries {_gib(step.temporary_bytes)})"
    )
    verdict = "fits" if step.fits else "DOES NOT FIT"
    return f"HBM      {_gib(step.needed_bytes)}{usable} GiB  {detail}  {verdict}"


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}" if value >= GIB / 10 else f"{value / GIB:.4f}"


def _flops_line(step: CompiledStep) -> str:
    return (
        f"FLOPs    {_engineering(step.model_flops_per_chip)} model / "
        f"{_engineering(step.hardware_flops_per_chip)} hardware per chip"
        + (f"  ({_engineering(step.compiled_flops_per_chip)} as compiled)" if step.executable is not None else "")
    )


def _collectives_text(step: CompiledStep) -> str:
    totals = sorted(step.collective_totals.items(), key=lambda item: -item[1].bytes)
    return ", ".join(f"{kind} {_bytes(total.bytes)} in {total.count}" for kind, total in totals) or "no collectives"


def _prediction_line(step: CompiledStep, attainable: float) -> str:
    assert step.topology is not None
    prediction = predict_compiled(step, attainable=attainable)
    bound = step.model_flops_per_chip / (prediction.lower * step.topology.chip.peak_flops) if prediction.lower else 0.0
    cause = prediction.bottleneck
    return (
        f"predict  {_seconds(prediction.lower)} (overlap) .. {_seconds(prediction.upper)} (none)   "
        f"MFU <= {100 * bound:.0f} %   bottleneck: {cause.name} ({cause.remedy})"
    )


def _warnings(step: CompiledStep) -> list[str]:
    lines = []
    share = step.hardware_flops_per_chip
    if step.executable is not None and share and step.compiled_flops_per_chip > 1.1 * share:
        ratio = step.compiled_flops_per_chip / share
        lines.append(f"warning  each chip runs {ratio:.1f} times its share of the matmuls: work is replicated")
    if step.flops.unknown_loops or not all(item.trip_count_known for item in step.collectives):
        lines.append("warning  a loop of unknown length was counted once")
    if step.flops.opaque:
        lines.append(f"warning  not counted: {', '.join(sorted(step.flops.opaque))}")
    return lines


def format_weak_scaling(
    workload: ContrastiveWorkload, topologies: Sequence[Topology], *, attainable: float = ATTAINABLE
) -> str:
    """Upper ends of the bracket at the same rows per chip on several topologies, from closed forms."""
    texts = []
    for topology in topologies:
        upper = predict(contrastive_parts(workload, topology, attainable=attainable)).upper
        open_axes = "" if all(topology.wrap) else " (no wrap)"
        texts.append(f"{topology.num_chips}: {_seconds(upper)}{open_axes}")
    return f"upper end {'  '.join(texts)}"


def _engineering(value: float) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f} "


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value * 1e6:.1f} us"
