"""FLOPs of the matmuls and convolutions that a compiled program runs on one chip.

An independent check of the jaxpr walk: the walk divides the program's work by the number of chips, this reads
what one chip was really given. More than the share means that the compiler replicated work.
"""

import math
import re

from jaxcore.distributed.flops import convolution_flops
from jaxcore.distributed.hlo_text import HloModule, Instruction, parse_hlo, shape_dims

__all__ = ["compiled_flops"]


def compiled_flops(hlo_text: str) -> int:
    """FLOPs per chip and step in ``compiled.as_text()``, loops multiplied out; custom calls count as nothing."""
    module = parse_hlo(hlo_text)
    total = 0
    for placed in module.placed():
        line = placed.instruction
        if line.opcode == "dot":
            total += placed.executions * _dot(module, placed.computation, line)
        elif line.opcode == "convolution":
            total += placed.executions * _convolution(module, placed.computation, line)
    return total


def _operand_dims(module: HloModule, computation: str, line: Instruction, index: int) -> tuple[int, ...]:
    operand = module.find(computation, line.operands[index])
    return shape_dims(operand.shape) if operand is not None else ()


def _dot(module: HloModule, computation: str, line: Instruction) -> int:
    lhs = _operand_dims(module, computation, line, 0)
    axes = [int(axis) for axis in (line.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "").split(",") if axis]
    return 2 * math.prod(shape_dims(line.shape)) * math.prod(lhs[axis] for axis in axes)


def _convolution(module: HloModule, computation: str, line: Instruction) -> int:
    """The TPU compiler writes matmuls as convolutions, batch dimensions as dilated spatial ones."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    if labels is None:
        return 0
    lhs_labels, rhs_labels, out_labels = labels.groups()
    lhs, rhs = (_operand_dims(module, computation, line, index) for index in (0, 1))
    out = shape_dims(line.shape)
    spatial = [str(axis) for axis in range(len(lhs_labels) - 2)]

    def window(field: str, default: str) -> list[int]:
        text = line.attribute(rf"window=\{{[^}}]*\b{field}=([\dx_\-]+)")
        return [int(part.split("_")[0]) for part in (text.split("x") if text else [default] * len(spatial))]

    return convolution_flops(
        batch=lhs[lhs_labels.index("b")] // int(line.attribute(r"batch_group_count=(\d+)") or 1),
        kernel_inputs=rhs[rhs_labels.index("i")],
        outputs=out[out_labels.index("f")],
        inputs_shape=[lhs[lhs_labels.index(axis)] for axis in spatial],
        kernel_shape=[rhs[rhs_labels.index(axis)] for axis in spatial],
        output_shape=[out[out_labels.index(axis)] for axis in spatial],
        strides=window("stride", "1"),
        padding_low=window("pad", "0_0"),
        input_dilation=window("lhs_dilate", "1"),
        kernel_dilation=window("rhs_dilate", "1"),
    )
