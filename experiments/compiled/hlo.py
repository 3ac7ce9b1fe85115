"""Reading a compiled program: what it writes to main memory, and how many kernels it launches."""

import math
import re
from typing import NamedTuple

# Instructions that write nothing, or name what is there.
IDLE = {
    *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "partition-id", "after-all"),
    *(
        "while",
        "conditional",
        "call",
        "copy-start",
        "copy-done",
        "slice-start",
        "slice-done",
        "async-start",
        "async-done",
    ),
}
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([a-z][a-z\-]*)\((.*)$", re.M)
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """A line of a program."""

    name: str
    kind: str  # the type of what it makes, with layout and memory space
    op: str
    rest: str  # operands and attributes

    @property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """The dtype and shape of every array that it makes."""
        return [(dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in ARRAY.findall(self.kind)]

    @property
    def writes(self) -> bool:
        """Whether it writes to main memory; S(1) is a TPU's own, fast memory."""
        return self.op not in IDLE and "S(1)" not in self.kind


class Program:
    """A compiled program, by its text."""

    def __init__(self, text: str):
        self.text = text
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        for block in re.split(r"\n(?=%|ENTRY )", text):
            head = re.match(r"(ENTRY )?%?([\w.\-]+) \(", block)
            if head is None:
                continue
            self.computations[head[2]] = [Instruction(*found) for found in INSTRUCTION.findall(block)]
            self.entry = head[2] if head[1] else self.entry

    def written(self) -> list[Instruction]:
        """What is written to main memory outside of fusions, a line of a loop once."""
        loops = {_body(one) for body in self.computations.values() for one in body if one.op == "while"}
        return [one for body in (self.entry, *sorted(loops)) for one in self.computations[body] if one.writes]

    def kernels(self) -> int:
        """How many kernels it launches: each fusion, product, copy and custom call, those of a loop times its trips."""
        return self._kernels(self.entry)

    def _kernels(self, body: str) -> int:
        total = 0
        for one in self.computations[body]:
            if one.op == "while":
                total += _trips(one) * self._kernels(_body(one))
            elif one.op not in IDLE:
                total += 1
        return total

    def of_size(self, counts: dict[int, str]) -> list[str]:
        """What is written of as many elements as something has: its name by its number of elements."""
        found = []
        for one in self.written():
            for dtype, shape in one.arrays:
                name = counts.get(math.prod(shape))
                if name is not None:
                    found.append(f"{name}: {one.op} {dtype}{list(shape)}")
        return found


def _body(loop: Instruction) -> str:
    found = re.search(r"body=%([\w.\-]+)", loop.rest)
    assert found is not None, loop
    return found[1]


def _trips(loop: Instruction) -> int:
    """How often a loop runs; 1 where the compiler does not know it."""
    found = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    return int(found[1]) if found else 1
