"""Processes of `benchmarks.versus_torch`: one for each trial, and what it answers."""

import dataclasses
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from avatar_jax.types import InputError
from benchmarks import versus_cases
from benchmarks.versus_cases import Case

Side = Literal["torch", "ours"]

ROOT = Path(__file__).resolve().parent.parent
MODULES = {"torch": "versus_side_torch", "ours": "versus_side_jax"}
# diffusers loads what it keeps in float32 through accelerate.
PACKAGES = ("torch", "diffusers", "accelerate")
WIDTH = 110  # characters of a reason that are shown
# The last line of a traceback, of any library.
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception|OutOfMemory\w*)\b.*", re.MULTILINE)


@dataclasses.dataclass
class Trial:
    """One way of one side to make a step.

    Attributes:
      options: attention, and how to compile.
      output: file with the first output, `1 C F H W`.
      first: seconds of the first call, compilation included.
      seconds: of each later call.
      peak: bytes of device memory; None: the device does not say.
      off: distance of the first output from torch's.
      refused: why it does not count.
    """

    side: Side
    options: dict[str, str]
    output: Path
    first: float = 0.0
    seconds: list[float] = dataclasses.field(default_factory=list)
    peak: int | None = None
    off: float | None = None
    refused: str | None = None

    @property
    def label(self) -> str:
        """Say the options."""
        return ", ".join(self.options.values())

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    def as_record(self) -> dict:
        """Return plain values."""
        record = dataclasses.asdict(self)
        del record["output"]
        return record


@dataclasses.dataclass(frozen=True)
class Sides:
    """The interpreters of both sides.

    Attributes:
      torch_python: the one that has torch and diffusers.
      folder: for answers and logs.
      on_cpu: hide GPUs from both.
    """

    torch_python: str
    folder: Path
    on_cpu: bool = False

    def describe(self) -> dict[Side, dict]:
        """Ask both sides what there is to run on.

        Raises:
          InputError: torch or diffusers is missing, or there is no GPU.
        """
        self._check_torch()
        found = {}
        for side, build in (("torch", "torch"), ("ours", "'.[cuda]'")):
            answer = self.ask(side, {}, name=f"{side}_hardware")
            if "refused" in answer:
                raise InputError(
                    f"expected {side} to say what it runs on, came "
                    f"{answer['refused']!r}; mend its installation first."
                )
            if answer["platform"] != "gpu" and not self.on_cpu:
                raise InputError(
                    f"expected a GPU, came a {answer['platform']} for {side}; use a "
                    f"machine with one and pip install {build} for it, or --tiny."
                )
            found[side] = answer
        return found

    def ask(self, side: Side, request: dict[str, Any], *, name: str) -> dict:
        """Run one process and return its answer, or why it was `refused`.

        Args:
          name: of its files in the folder.
        """
        python = self.torch_python if side == "torch" else sys.executable
        result = self.folder / f"{name}.json"
        result.unlink(missing_ok=True)
        request = {**request, "result": str(result)}
        command = [python, "-m", f"benchmarks.{MODULES[side]}", json.dumps(request)]
        with (self.folder / f"{name}.log").open("w+") as log:
            done = subprocess.run(
                command, cwd=ROOT, env=self._environment(name), stdout=log, stderr=log
            )
            log.seek(0)
            text = log.read()
        if done.returncode == 0:
            return json.loads(result.read_text())
        if done.returncode < 0:
            return {"refused": f"its process died of signal {-done.returncode}"}
        errors = _ERROR.findall(text) or [f"exit code {done.returncode}"]
        return {"refused": errors[-1][:WIDTH]}

    def _check_torch(self) -> None:
        find = "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) is None "
        find += f"for n in {PACKAGES}))"
        try:
            done = subprocess.run([self.torch_python, "-c", find], capture_output=True)
        except OSError as error:
            raise InputError(
                f"expected a Python interpreter, came --torch-python "
                f"{self.torch_python} ({error.strerror}); give the path of one."
            ) from None
        if done.returncode:
            raise InputError(
                f"expected {', '.join(PACKAGES)}, which {self.torch_python} lacks; pip "
                f"install {' '.join(PACKAGES)} there, or name an interpreter that has "
                "them with --torch-python."
            )

    def _environment(self, name: str) -> dict[str, str]:
        """Return variables that make a process start cold and share the device."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        chosen = {
            "PYTHONPATH": path,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            # Each trial compiles anew, so that the first calls can be compared.
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / f"{name}_inductor"),
        }
        if self.on_cpu:
            chosen |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, **chosen}


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs the trials of one case.

    Attributes:
      weights: folder of the model.
      inputs: file of noise and prompt.
      repeats: steps that are timed.
    """

    case: Case
    sides: Sides
    weights: Path
    inputs: Path
    repeats: int

    def run_torch(self, backend: str, mode: str) -> Trial:
        """Run diffusers' step with one attention and one way to compile."""
        request = {
            "timestep": versus_cases.TIMESTEP,
            "dtype": self.case.cfg.dtype,
            "device": "cpu" if self.sides.on_cpu else "cuda",
        }
        return self._run("torch", {"backend": backend, "mode": mode}, request)

    def run_ours(self, implementation: str) -> Trial:
        """Run our step with one implementation of attention."""
        options = {"implementation": implementation}
        return self._run("ours", options, {"case": self.case.name})

    def run_references(self, implementation: str, lengths: tuple[int, ...]) -> dict:
        """Run our steps with references of so many latents."""
        request = {
            "case": self.case.name,
            "implementation": implementation,
            "lengths": lengths,
            "repeats": self.repeats,
        }
        return self.sides.ask("ours", request, name=f"{self.case.name}_references")

    def _run(self, side: Side, options: dict[str, str], request: dict) -> Trial:
        name = "_".join((self.case.name, side, *options.values()))
        output = self.sides.folder / f"{name}.npy"
        files = {"weights": str(self.weights), "inputs": str(self.inputs)}
        request = {**request, **options, **files, "repeats": self.repeats}
        request["output"] = str(output)
        answer = self.sides.ask(side, request, name=name)
        return Trial(side, options, output, **answer)
