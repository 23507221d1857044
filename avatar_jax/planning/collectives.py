"""What a compiled program sends between devices: its collectives times their loops.

The text of a compiled program (`compiled.as_text()`) is that of one device. An op in
the body of a loop counts as often as the loop turns; in a branch, as if it is taken.
With a result of S bytes and g devices in a group, one device sends

  (1) all-gather, all-to-all   S (g - 1) / g
  (2) reduce-scatter           S (g - 1)
  (3) all-reduce               2 S (g - 1) / g
  (4) collective-permute       S
"""

import dataclasses
import math
import re
from collections.abc import Iterable

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Bits of a number; "pred" takes a byte.
_BITS = {"pred": 8, "c64": 64, "c128": 128}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_OP = re.compile(r"^(ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|true_computation"
    r"|false_computation|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that one device sends in a run of a program.

    Attributes:
      sent: by kind of collective.
      unknown_loops: loops whose turns the text does not tell; they count once.
    """

    sent: dict[str, float]
    unknown_loops: int = 0

    @property
    def total(self) -> float:
        """Bytes of all kinds."""
        return sum(self.sent.values(), 0.0)


@dataclasses.dataclass(frozen=True)
class _Op:
    name: str
    result: str
    kind: str
    rest: str  # operands and attributes
    is_root: bool


def count(text: str, num_devices: int) -> Traffic:
    """Add up what a compiled program sends.

    Args:
      num_devices: of the program; a collective that names no groups is of all.
    """
    computations, entry = _parse(text)
    sent = dict.fromkeys(KINDS, 0.0)
    unknown = 0
    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        for op in computations.get(name, ()):
            kind = op.kind.removesuffix("-start")
            if kind in KINDS:
                sent[kind] += times * _sent_bytes(op, kind, num_devices)
            turns = 1
            if op.kind == "while":
                found = _count_turns(op, computations)
                unknown += found is None
                turns = found or 1
            # Computations of collectives add numbers; the rest of what has been
            # started names its computation again.
            if kind not in KINDS and kind not in ("async-update", "async-done"):
                waiting += [(called, times * turns) for called in _called(op)]
    return Traffic(sent, unknown)


def _parse(text: str) -> tuple[dict[str, list[_Op]], str]:
    """Return the operations of every computation, and the name of the first to run."""
    computations: dict[str, list[_Op]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header and not line.startswith("HloModule"):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _OP.match(line.strip())):
            root, name, result, kind, rest = found.groups()
            current.append(_Op(name, result, kind, rest, bool(root)))
    return computations, entry


def _called(op: _Op) -> Iterable[str]:
    for names in _CALLED.findall(op.rest):
        yield from re.findall(r"[\w.\-]+", names)


def _sent_bytes(op: _Op, kind: str, num_devices: int) -> float:
    size, group = _result_bytes(op, kind), _group_size(op.rest, num_devices)
    match kind:
        case "all-reduce":
            return 2 * size * (group - 1) / group
        case "reduce-scatter":
            return size * (group - 1)
        case "collective-permute":
            return size
    return size * (group - 1) / group


def _result_bytes(op: _Op, kind: str) -> float:
    sizes = [_array_bytes(*found) for found in _ARRAY.findall(op.result)]
    if not op.kind.endswith("-start") or kind == "all-reduce":
        return sum(sizes)
    # A start returns what it was given, what it makes, and flags.
    return max(sizes) if kind in ("all-gather", "collective-permute") else sizes[1]


def _array_bytes(dtype: str, dims: str) -> float:
    found = re.search(r"\d+", dtype)
    bits = _BITS.get(dtype) or (int(found[0]) if found else 0)
    return math.prod(int(d) for d in dims.split(",") if d) * bits / 8


def _group_size(attributes: str, num_devices: int) -> int:
    """Read the three ways in which groups of devices are written."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes)
    if named:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[a]) for a in re.findall(r"'([^']+)'", named[2]))
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if tiled:
        return int(tiled[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return listed[1].count(",") + 1 if listed else num_devices


def _count_turns(loop: _Op, computations: dict[str, list[_Op]]) -> int | None:
    """Return how often a loop turns, which counts up from 0; None: not to be read."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
    if known:
        return int(known[1])
    names = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", loop.rest))
    condition, body = (computations.get(names[n], []) for n in ("condition", "body"))
    test = next((op for op in condition if op.is_root), None)
    if test is None or test.kind != "compare" or "direction=LT" not in test.rest:
        return None
    ops = {op.name: op for op in condition}
    counter, limit = (ops.get(name) for name in _operands(test)[:2])
    if limit is None or limit.kind != "constant" or counter is None:
        return None
    place = re.search(r"index=(\d+)", counter.rest)
    step = _find_step(body, int(place[1])) if place else None
    return -(-_constant(limit) // step) if step else None


def _find_step(body: list[_Op], place: int) -> int | None:
    """Return by how much a loop's body raises the counter at a place of its state."""
    ops = {op.name: op for op in body}
    root = next((op for op in body if op.is_root), None)
    if root is None or root.kind != "tuple" or place >= len(_operands(root)):
        return None
    op, step = ops.get(_operands(root)[place]), 0
    while op is not None and op.kind in ("add", "copy"):
        operands = [ops[name] for name in _operands(op) if name in ops]
        step += sum(_constant(o) for o in operands if o.kind == "constant")
        op = next((o for o in operands if o.kind != "constant"), None)
    return step or None


def _operands(op: _Op) -> list[str]:
    return re.findall(r"%([\w.\-]+)", op.rest.split(")", 1)[0])


def _constant(op: _Op) -> int:
    return int(op.rest.split(")", 1)[0])
