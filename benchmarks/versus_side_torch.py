"""The torch side of `benchmarks.versus_torch`: diffusers' transformer of Wan, compiled.

  python -m benchmarks.versus_side_torch '{"result": "hardware.json"}'
  python -m benchmarks.versus_side_torch '{"result": ..., "weights": ..., ...}'

It runs in a process, and if need be in an environment, of its own: nothing of ours or
of jax is imported. The first form says what there is to run on, the second runs a step
with one attention and one way to compile. What is refused ends it with torch's error.
"""

import json
import platform
import sys
import time
from pathlib import Path

import diffusers
import numpy as np
import torch

WARM_UP = 2  # calls after the first that are not counted


def main(argv: list[str]) -> None:
    """Do what a request asks and write the answer where it says."""
    request = json.loads(argv[0])
    answer = measure(request) if "weights" in request else describe()
    Path(request["result"]).write_text(json.dumps(answer))


def describe() -> dict:
    """Say what there is to run on."""
    on_gpu = torch.cuda.is_available()
    cudnn = torch.backends.cudnn.version() if on_gpu else None
    name = torch.cuda.get_device_name() if on_gpu else platform.processor() or "cpu"
    return {
        "platform": "gpu" if on_gpu else "cpu",
        "device": name,
        "versions": {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "cuda": torch.version.cuda,
            "cudnn": cudnn,
        },
    }


def measure(request: dict) -> dict:
    """Time steps; each one's output is the next one's input.

    Args:
      request: the folder `weights`, the file `inputs`, the file for the first `output`;
        `timestep` of 1000, `dtype`, `device`, `backend` of attention, `mode` of
        torch.compile, `repeats`.
    """
    device, dtype = request["device"], getattr(torch, request["dtype"])
    # Norms, tables and times stay float32, as diffusers has it for whoever loads Wan.
    model = diffusers.WanTransformer3DModel.from_pretrained(
        request["weights"], torch_dtype=dtype
    )
    model = model.to(device).eval()
    model.set_attention_backend(request["backend"])
    compiled = torch.compile(model, mode=request["mode"])
    inputs = np.load(request["inputs"])
    noise, text = (
        torch.from_numpy(inputs[n]).to(device, dtype) for n in ("noise", "text")
    )
    timestep = torch.tensor([request["timestep"]], device=device)

    def step(latents: torch.Tensor) -> torch.Tensor:
        out = compiled(latents, timestep, text, return_dict=False)[0]
        if device == "cuda":
            torch.cuda.synchronize()
        return out

    with torch.inference_mode():
        start = time.perf_counter()
        latents = step(noise)
        first = time.perf_counter() - start
        np.save(request["output"], latents.float().cpu().numpy())
        for _ in range(WARM_UP):
            latents = step(latents)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(request["repeats"]):
            start = time.perf_counter()
            latents = step(latents)
            seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return {"first": first, "seconds": seconds, "peak": peak}


if __name__ == "__main__":
    main(sys.argv[1:])
