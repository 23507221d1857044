"""What a plan comes to: bytes, operations and traffic of its programs, and if it fits.

The most that a device holds is that of the fullest phase: what its program takes by the
compiler's count, and what lies beside it that the program does not read.
"""

import dataclasses

from avatar_jax.planning.hardware import Hardware
from avatar_jax.planning.programs import Compiled

GB = 10**9


@dataclasses.dataclass(frozen=True)
class Phase:
    """A program, and the bytes on a device that it does not read."""

    program: Compiled
    beside: int = 0

    @property
    def total(self) -> int:
        """Bytes of a device while the program runs."""
        return self.program.total + self.beside


@dataclasses.dataclass(frozen=True)
class Programs:
    """The programs of a config.

    Attributes:
      parts: bytes on a device by what they are, from shapes and shardings.
      phases: in the order in which they run.
      main: name of the program that is run most.
      encoders: bytes of frozen encoders, which run before all programs.
      optimizer_flops: of a step, all devices together; 0: there is none.
    """

    parts: dict[str, int]
    phases: tuple[Phase, ...]
    main: str
    encoders: dict[str, int] = dataclasses.field(default_factory=dict)
    optimizer_flops: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The programs of a config on a topology.

    Attributes:
      subject: what is planned, in words.
      mesh: devices by axis.
    """

    config: str
    subject: str
    hardware: Hardware
    mesh: dict[str, int]
    made: Programs

    @property
    def bytes_per_device(self) -> int:
        """Bytes of the fullest phase."""
        return max(phase.total for phase in self.made.phases)

    @property
    def fits(self) -> bool:
        """Tell whether every phase has room."""
        compiled = all(phase.program.needed is None for phase in self.made.phases)
        return compiled and self.bytes_per_device <= self.hardware.usable

    @property
    def main(self) -> Compiled:
        """The program that is run most."""
        return next(
            phase.program
            for phase in self.made.phases
            if phase.program.name == self.made.main
        )

    def place_encoder(self, size: int) -> str:
        """Say where an encoder of so many bytes has room."""
        left = self.hardware.usable - self.bytes_per_device
        return "beside" if size <= left else "host"

    def to_json(self) -> dict:
        """Return plain values."""
        hardware, chip = self.hardware, self.hardware.devices_per_chip
        return {
            "fits": self.fits,
            "bytes_per_chip": chip * self.bytes_per_device,
            "hbm_bytes_per_chip": chip * hardware.memory,
            "usable_bytes_per_chip": chip * hardware.usable,
            "devices_per_chip": chip,
            "model_flops": self.main.model_flops,
            "collective_bytes": self.main.traffic.total,
            "compile_seconds": sum(p.program.seconds for p in self.made.phases),
            "config": self.config,
            "subject": self.subject,
            "topology": hardware.topology,
            "devices": len(hardware.devices),
            "mesh": self.mesh,
            "parts": self.made.parts,
            "optimizer_flops": self.made.optimizer_flops,
            "encoders": {
                name: {"bytes": size, "place": self.place_encoder(size)}
                for name, size in self.made.encoders.items()
            },
            "programs": {p.program.name: _to_json(p) for p in self.made.phases},
        }


def _to_json(phase: Phase) -> dict:
    program = phase.program
    return {
        "total_bytes": phase.total,
        "argument_bytes": program.arguments,
        "repeated_argument_bytes": program.twice,
        "output_bytes": program.outputs,
        "aliased_bytes": program.reused,
        "temporary_bytes": program.temporary,
        "code_bytes": program.code,
        "beside_bytes": phase.beside,
        "out_of_memory_bytes": program.needed,
        "model_flops": program.model_flops,
        "collective_bytes": program.traffic.sent,
        "loops_of_unknown_length": program.traffic.unknown_loops,
        "compile_seconds": program.seconds,
    }


def format_plan(plan: Plan) -> str:
    """Return a plan as lines for people; bytes are of one device."""
    hardware, lines = plan.hardware, [plan.subject]
    axes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    count = len(hardware.devices)
    lines.append(f"{hardware.topology}: {count} devices, mesh {axes or '1'}")
    if hardware.devices_per_chip > 1:
        lines.append(f"a chip is {hardware.devices_per_chip} devices")
    lines += ["", "bytes of one device, by shape and sharding"]
    lines += [_row(name, size) for name, size in plan.made.parts.items()]
    lines += ["", "by the compiler, GB"]
    lines += _table(plan)
    for name, size in plan.made.encoders.items():
        where = {
            "beside": "has room beside all of it",
            "host": "does not fit beside: on the host, or dropped before sampling",
        }
        lines.append(_row(name, size) + f"  {where[plan.place_encoder(size)]}")
    if plan.made.optimizer_flops:
        flops = f"{plan.made.optimizer_flops / 1e15:.3g} PFLOP"
        lines.append(f"of the optimiser, all devices: {flops}")
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines += [
        "",
        f"{verdict}: {plan.bytes_per_device / GB:.2f} GB of "
        f"{hardware.usable / GB:.2f} GB that a program may use of "
        f"{hardware.memory / GB:.2f} GB",
    ]
    return "\n".join(lines)


def _row(name: str, size: int) -> str:
    return f"  {name:<18}{size / GB:10.3f} GB"


def _table(plan: Plan) -> list[str]:
    names = ("arguments", "outputs", "temporary", "code", "beside", "total")
    head = f"  {'program':<11}" + "".join(f"{name:>10}" for name in names)
    lines = [head + f"{'PFLOP':>11}{'sent':>10}{'seconds':>9}"]
    for phase in plan.made.phases:
        program = phase.program
        sizes = (
            program.arguments - program.twice,
            program.outputs - program.reused,
            program.temporary,
            program.code,
            phase.beside,
            phase.total,
        )
        cells = "".join(f"{size / GB:10.3f}" for size in sizes)
        flops = (
            f"{program.model_flops / 1e15:11.3f}"
            if program.model_flops
            else f"{'-':>11}"
        )
        sent = f"{program.traffic.total / GB:10.2f}"
        lines.append(f"  {program.name:<11}{cells}{flops}{sent}{program.seconds:9.0f}")
        if program.needed is not None:
            lines.append("    out of memory: total is what the compiler asked for")
        if program.traffic.unknown_loops:
            count = program.traffic.unknown_loops
            lines.append(f"    {count} loops of unknown length count once in `sent`")
        if program.twice:
            twice = f"{program.twice / GB:.3f}"
            lines.append(f"    arguments: without {twice} that are one array twice")
    lines.append("  PFLOP: of all devices, by formula. sent: by one device, a run")
    return lines
