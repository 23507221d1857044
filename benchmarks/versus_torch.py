"""One denoising step on a GPU: ours against diffusers' under torch.compile.

  pip install torch diffusers accelerate
  python -m benchmarks.versus_torch [--sizes 480p 720p --repeats 9 --json]
  python -m benchmarks.versus_torch --torch-python ~/torch/bin/python
  python -m benchmarks.versus_torch --tiny          # on a CPU: that it works, no times
  python -m benchmarks.versus_torch compile [--devices h200]      # no GPU, no torch

Wan2.1 text-to-video 1.3B with the same random weights and inputs on both sides, batch
1, bfloat16, 81 frames. Each trial is a process of its own, which has the GPU and its
memory to itself. torch runs every attention of `--backends` in the first of `--modes`
of torch.compile, then the fastest of them in the other modes; ours runs every one of
`--implementations` (plain "xla" is not among them: it would write down the scores of
all pairs, 300 GB at 720p). Printed are the first call, compilation included; median,
least and most of later ones; the peak of memory (torch's of the timed steps, ours of
the process); and how far the first output is from torch's first, as a share of its
size. What is farther off than rounding explains does not count. Then torch / ours of
the fastest of each.

Last come our own steps in TAVR's layout, of the same widths, with a reference of R
latents: its keys and values made once per request, or in every step.

torch and jax may live in one environment or in two: `--torch-python` names the
interpreter that has torch. `compile` asks the CUDA compiler (see
launch/compile_cuda.sh) what our programs need on a GPU that is not here.
"""

import argparse
import importlib.util
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from avatar_kernels import cuda_targets

from avatar_jax import command
from avatar_jax.types import InputError
from benchmarks import versus_cases, versus_processes, versus_programs
from benchmarks.versus_cases import Case
from benchmarks.versus_processes import Trial

GOAL = 1.33  # torch / ours
LENGTHS = (5, 12, 48)  # latents of a reference
# Root mean square of the difference of outputs over that of torch's. 30 layers of 1,536
# in bfloat16 (48 rows, on a CPU): ours is 0.020 off torch's, which is 0.015 off its own
# in float32.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
BACKENDS = ("_native_cudnn", "_native_flash", "native")  # of diffusers; SDPA of torch
MODES = ("default", "max-autotune-no-cudagraphs")
IMPLEMENTATIONS = ("triton", "mosaic_gpu")
GIB = 2**30


def main(argv: list[str]) -> None:
    """Measure, or compile for a GPU that is not here."""
    args = _parse(argv)
    if args.action == "compile":
        _compile(args)
        return
    cases = [versus_cases.find(n) for n in (["tiny"] if args.tiny else args.sizes)]
    with tempfile.TemporaryDirectory(prefix="versus_torch_") as temporary:
        folder = Path(args.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        sides = versus_processes.Sides(args.torch_python, folder, on_cpu=args.tiny)
        record = {"hardware": sides.describe(), "cases": []}
        _print_hardware(record["hardware"], args.tiny)
        versus_cases.write_weights(folder / "weights", cases[0].cfg)
        for case in cases:
            record["cases"].append(_run_case(case, sides, args))
    if args.json:
        print(json.dumps(record))


def _run_case(
    case: Case, sides: versus_processes.Sides, args: argparse.Namespace
) -> dict:
    """Run all trials of one size and print what they say."""
    print(f"\n{case.describe()}; batch 1, median of {args.repeats}", flush=True)
    print(
        f"{'side':<7}{'choice':<44}{'first call s':>13}{'ms a step (least-most)':>30}"
        f"{'peak GiB':>10}{'off torch':>11}"
    )
    inputs = sides.folder / f"{case.name}.npz"
    versus_cases.write_inputs(inputs, case)
    weights = sides.folder / "weights"
    runner = versus_processes.Runner(case, sides, weights, inputs, args.repeats)
    torch, ours = [], []
    backends = ["native"] if args.tiny else args.backends
    for backend in backends:
        torch.append(_show(runner.run_torch(backend, args.modes[0]), torch, case))
    best = _fastest(torch, "torch").options["backend"]
    for mode in args.modes[1:]:
        torch.append(_show(runner.run_torch(best, mode), torch, case))
    for name in ["xla"] if args.tiny else args.implementations:
        ours.append(_show(runner.run_ours(name), torch, case))
    pair = _fastest(torch, "torch"), _fastest(ours, "ours")
    ratio = _print_ratio(*pair, means_something=not args.tiny)
    references = runner.run_references(pair[1].options["implementation"], LENGTHS)
    _print_references(references)
    return {
        "case": case.describe(),
        "trials": [t.as_record() for t in (*torch, *ours)],
        "ratio": ratio,
        "goal": GOAL,
        "references": references,
    }


def _show(trial: Trial, torch: list[Trial], case: Case) -> Trial:
    """Compare a trial with torch's first that ran; print its row."""
    first = next((t for t in torch if t.refused is None), trial)
    label = f"{trial.side:<7}{trial.label:<44}"
    if trial.refused is None:
        trial.off = _difference(trial.output, first.output)
        low, high = 1e3 * min(trial.seconds), 1e3 * max(trial.seconds)
        spread = f"{1e3 * trial.median:.2f} ({low:.2f}-{high:.2f})"
        peak = "-" if trial.peak is None else f"{trial.peak / GIB:.2f}"
        print(f"{label}{trial.first:13.1f}{spread:>30}{peak:>10}{trial.off:11.2e}")
        if not trial.off <= TOLERANCES[case.cfg.dtype]:
            trial.refused = (
                f"its output is {trial.off:.2g} off torch's, "
                f"{TOLERANCES[case.cfg.dtype]} is allowed: another computation"
            )
            label = " " * len(label)
    if trial.refused is not None:
        print(f"{label}  does not count: {trial.refused}")
    sys.stdout.flush()
    return trial


def _difference(output: Path, expected: Path) -> float:
    """Return the root mean square of the difference over that of what is expected."""
    a, b = np.load(output), np.load(expected)
    return float(np.sqrt(np.mean(np.square(a - b)) / np.mean(np.square(b))))


def _fastest(trials: list[Trial], side: str) -> Trial:
    counted = [trial for trial in trials if trial.refused is None]
    if not counted:
        reasons = "; ".join(f"{t.label}: {t.refused}" for t in trials)
        raise InputError(
            f"expected one trial of {side} that runs, came none ({reasons}); choose "
            "others with --backends, --modes or --implementations, or keep their logs "
            "with --folder."
        )
    return min(counted, key=lambda trial: trial.median)


def _print_ratio(torch: Trial, ours: Trial, *, means_something: bool) -> float:
    ratio = torch.median / ours.median
    low = min(torch.seconds) / max(ours.seconds)
    high = max(torch.seconds) / min(ours.seconds)
    verdict = f"goal {GOAL}: {'met' if ratio >= GOAL else 'not met'}"
    print(
        f"torch ({torch.label}) / ours ({ours.label}): {ratio:.2f} ({low:.2f}-"
        f"{high:.2f}); {verdict if means_something else 'of a CPU, means nothing'}"
    )
    a, b = np.load(ours.output), np.load(torch.output)
    apart = np.abs(a - b)
    print(
        f"their outputs differ by {apart.max():.2g} at most, {apart.mean():.2g} in the "
        f"mean; torch's have standard deviation {b.std():.2g}",
        flush=True,
    )
    return ratio


def _print_references(found: dict) -> None:
    if "refused" in found:
        print(f"steps with a reference: refused: {found['refused']}", flush=True)
        return
    print("ours in TAVR's layout, with a reference; ms (least-most)")
    print(
        f"{'R':>4}{'cached':>30}{'uncached':>30}{'uncached / cached':>19}{'once':>10}"
    )
    for row in found["rows"]:
        if "refused" in row:
            print(f"{row['length']:4d}  {row['refused']}")
            continue
        cells, medians = "", []
        for name in ("cached", "uncached"):
            samples = [1e3 * s for s in row[name]]
            medians.append(statistics.median(samples))
            spread = f"{medians[-1]:.2f} ({min(samples):.2f}-{max(samples):.2f})"
            cells += f"{spread:>30}"
        print(
            f"{row['length']:4d}{cells}{medians[1] / medians[0]:19.2f}"
            f"{1e3 * row['cache_once']:10.2f}"
        )
    peak = found["peak"]
    if peak is not None:
        print(f"peak of these rows together: {peak / GIB:.2f} GiB", flush=True)


def _print_hardware(hardware: dict, tiny: bool) -> None:
    for side, told in hardware.items():
        versions = ", ".join(f"{k} {v}" for k, v in told["versions"].items() if v)
        print(f"{side:<7}{told['device']}; {versions}")
    if tiny:
        print("On a CPU, at a tiny width: that it works; these times mean nothing.")


def _compile(args: argparse.Namespace) -> None:
    """Print what the CUDA compiler says of our programs."""
    if importlib.util.find_spec("jax_plugins") is None:
        raise InputError(
            "expected the CUDA build of jax, came another; use the environment that "
            "launch/compile_cuda.sh makes in .venv-cuda, and its variables."
        )
    heads = ("compile s", "arguments GiB", "temporary GiB", "together GiB")
    print(f"{'device':<8}{'size':<7}{'implementation':<16}{'program':<18}", end="")
    print("".join(f"{head:>15}" for head in heads))
    for device, name, ours in itertools.product(
        args.devices, args.sizes, args.implementations
    ):
        case = versus_cases.find(name)
        for report in versus_programs.compile_for(device, case, ours, LENGTHS[-1]):
            sizes = report.arguments, report.temporary, report.total
            cells = "".join(f"{size / GIB:15.3f}" for size in sizes)
            print(
                f"{device:<8}{name:<7}{ours:<16}{report.name:<18}{report.seconds:15.1f}"
                f"{cells}",
                flush=True,
            )


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add, sizes = parser.add_argument, list(versus_cases.CASES)
    add("action", nargs="?", choices=("measure", "compile"), default="measure")
    add("--sizes", nargs="+", choices=sizes, default=sizes)
    add("--repeats", type=int, default=9)
    add("--backends", nargs="+", default=BACKENDS, help="attention of diffusers")
    add("--modes", nargs="+", default=MODES, help="of torch.compile")
    ours = (*IMPLEMENTATIONS, "xla")
    add("--implementations", nargs="+", choices=ours, default=IMPLEMENTATIONS)
    add("--torch-python", default=sys.executable, help="interpreter that has torch")
    add("--folder", help="keep weights, outputs and logs here")
    add("--tiny", action="store_true", help="on a CPU, to prove that it works")
    gpus = cuda_targets.names()
    add("--devices", nargs="+", choices=gpus, default=["h200"], help="to compile for")
    add("--json", action="store_true", help="also as JSON, on the last line")
    args = parser.parse_args(argv)
    if args.repeats < 1:
        raise InputError(f"--repeats {args.repeats}; use 1 or more.")
    return args


if __name__ == "__main__":
    sys.exit(command.run(main))
