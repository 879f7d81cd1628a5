"""Reading compiled HLO text: computations, instructions, and how often each computation runs.

The text of ``jax.stages.Compiled.as_text()`` is what the compiler really emitted. Its cost analysis counts
the body of a loop once; here every computation carries the number of times that it runs, from the trip counts
of the loops around it.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

__all__ = ["HloModule", "Instruction", "Placed", "parse_hlo", "shape_bytes", "shape_dims"]

_DTYPE_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16}
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*(?:\([^=]*|\{$)")
_NAME = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+) = ")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: ``name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False
    arguments: str = ""

    def attribute(self, pattern: str) -> str | None:
        """First group of `pattern` in the attributes, or None."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else None


@dataclasses.dataclass(frozen=True)
class Placed:
    """An instruction where it runs.

    Attributes:
      instruction: the line.
      computation: the computation that holds it.
      caller: the innermost computation around it that is not a fusion or an async wrapper.
      executions: how often it runs per step.
      trip_count_known: whether every loop around it had a known trip count (else counted once).
    """

    instruction: Instruction
    computation: str
    caller: str
    executions: int
    trip_count_known: bool


@dataclasses.dataclass(frozen=True)
class HloModule:
    """Parsed text: instructions by computation, in order, and the entry computation."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    @functools.cached_property
    def _by_name(self) -> dict[tuple[str, str], Instruction]:
        return {(place, line.name): line for place, lines in self.computations.items() for line in lines}

    def find(self, computation: str, name: str) -> Instruction | None:
        """The instruction of that name in that computation."""
        return self._by_name.get((computation, name))

    def placed(self) -> Iterator[Placed]:
        """Every instruction reachable from the entry, with its number of executions.

        Both branches of a conditional count as if taken; a reduction's scalar function is not entered.
        """
        yield from self._walk(self.entry, self.entry, 1, True)

    def _walk(self, computation: str, caller: str, executions: int, known: bool) -> Iterator[Placed]:
        for line in self.computations.get(computation, ()):
            yield Placed(line, computation, caller, executions, known)
            if line.opcode == "while":
                trips = self.trip_count(line, computation)
                body = line.attribute(r"body=%?([\w.\-]+)") or ""
                yield from self._walk(
                    body, body, executions * (1 if trips is None else trips), known and trips is not None
                )
            elif line.opcode in ("fusion", "async-start"):
                for called in _called(line):
                    yield from self._walk(called, caller, executions, known)
            elif line.opcode in ("call", "conditional"):
                branches = _called(line) + re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line.attributes)
                for called in branches:
                    yield from self._walk(called, called, executions, known)

    def trip_count(self, loop: Instruction, computation: str) -> int | None:
        """Trips of a ``while``: the compiler's own note, else a condition ``counter < constant`` counting
        by one."""
        note = loop.attribute(r'known_trip_count"?:\s*\{"n":"(\d+)"\}')
        if note is not None:
            return int(note)
        condition = loop.attribute(r"condition=%?([\w.\-]+)")
        test = self._condition_test(condition or "")
        if test is None:
            return None
        index, direction, limit = test
        start = self._loop_start(loop, computation, index)
        trips = limit - start + (1 if direction == "LE" else 0)
        return max(trips, 0)

    def _condition_test(self, condition: str) -> tuple[int, str, int] | None:
        """(tuple index of the counter, direction, limit) of a condition that compares a counter with a constant."""
        lines = self.computations.get(condition, ())
        root = next((line for line in lines if line.is_root), None)
        while root is not None and root.opcode in ("copy", "bitcast", "fusion") and len(root.operands) >= 1:
            if root.opcode != "fusion":
                root = self.find(condition, root.operands[0])
                continue
            return self._fused_test(condition, root)
        if root is None or root.opcode != "compare":
            return None
        counter, limit = (self.find(condition, name) for name in root.operands[:2])
        return _test(counter, _constant(limit), root.attribute(r"direction=(\w+)"))

    def _fused_test(self, condition: str, fusion: Instruction) -> tuple[int, str, int] | None:
        """The same where the comparison was fused: its operands are the fusion's parameters."""
        called = _called(fusion)
        inner = self.computations.get(called[0], ()) if called else ()
        compare = next((line for line in inner if line.opcode == "compare"), None)
        if compare is None:
            return None

        def outer(name: str) -> Instruction | None:
            line = next((line for line in inner if line.name == name), None)
            if line is not None and line.opcode == "parameter":
                return self.find(condition, fusion.operands[int(line.arguments)])
            return line

        counter, limit = (outer(name) for name in compare.operands[:2])
        return _test(counter, _constant(limit), compare.attribute(r"direction=(\w+)"))

    def _loop_start(self, loop: Instruction, computation: str, index: int) -> int:
        """First value of the counter; 0 unless a constant is seen (a peeled loop starts later)."""
        line = self.find(computation, loop.operands[0]) if loop.operands else None
        if line is not None and line.opcode == "tuple" and index < len(line.operands):
            line = self.find(computation, line.operands[index])
            while line is not None and line.opcode in ("copy", "bitcast", "convert") and line.operands:
                line = self.find(computation, line.operands[0])
            return _constant(line) or 0
        return 0


def parse_hlo(text: str) -> HloModule:
    """Parses the text of a compiled module (optimised HLO, one module)."""
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, current = "", None
    lines: list[Instruction] = []
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header and line.rstrip().endswith("{") and not line.startswith(("HloModule", " ")):
                current, lines = header.group(2), []
                entry = current if header.group(1) else entry
        elif line.startswith("}"):
            computations[current] = tuple(lines)
            current = None
        elif (parsed := _parse_line(line)) is not None:
            lines.append(parsed)
    return HloModule(computations, entry)


def _parse_line(line: str) -> Instruction | None:
    name = _NAME.match(line)
    if name is None:
        return None
    rest = line[name.end() :]
    shape_end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:shape_end], rest[shape_end:].lstrip()
    opcode, parenthesis, _ = rest.partition("(")
    if not parenthesis:
        return None
    rest = rest[len(opcode) :]
    end = _closing(rest)
    arguments = rest[1:end]
    operands = re.findall(r"%([\w.\-]+)", arguments) or [
        part.split()[-1] for part in arguments.split(",") if part.strip() and not part.strip()[0].isdigit()
    ]
    return Instruction(name.group(2), shape, opcode, tuple(operands), rest[end + 1 :], bool(name.group(1)), arguments)


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at the start of `text`."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    return len(text) - 1


def _called(line: Instruction) -> list[str]:
    names: list[str] = []
    for group, single in _CALLED.findall(line.attributes):
        names += re.findall(r"[\w.\-]+", group) if group else [single]
    return names


def _constant(line: Instruction | None) -> int | None:
    if line is None or line.opcode != "constant" or not re.fullmatch(r"-?\d+", line.arguments):
        return None
    return int(line.arguments)


def _test(counter: Instruction | None, limit: int | None, direction: str | None) -> tuple[int, str, int] | None:
    if counter is None or counter.opcode != "get-tuple-element" or limit is None or direction not in ("LT", "LE"):
        return None
    return int(counter.attribute(r"index=(\d+)") or 0), direction, limit


def shape_dims(shape: str) -> tuple[int, ...]:
    """Dimensions of the first array in a shape."""
    match = _SHAPE.search(shape)
    return tuple(int(size) for size in match.group(2).split(",") if size) if match else ()


def shape_bytes(shape: str) -> int:
    """Bytes of all arrays in a shape, without padding; tuples are summed."""
    total = 0
    for dtype, dims in _SHAPE.findall(re.sub(r"/\*.*?\*/", "", shape)):
        if dtype in _DTYPE_BITS:
            bits = _DTYPE_BITS[dtype]
        else:
            digits = re.search(r"\d+", dtype)
            bits = int(digits.group()) if digits else 0
        total += math.prod(int(size) for size in dims.split(",") if size) * bits // 8
    return total
