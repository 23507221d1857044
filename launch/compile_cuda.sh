#!/usr/bin/env bash
# Compile the GPU kernels with the real CUDA compiler, without a GPU: Triton for A100 and
# H100, Hopper for H100 and H200. Installs the CUDA build of jax (about 3 GB) into a
# folder of its own.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/venv.sh
VENV_FOLDER=.venv-cuda
make_venv -e '.[cuda]'
libraries=("$PWD"/.venv-cuda/lib/python3*/site-packages/nvidia/*/lib)
export LD_LIBRARY_PATH="$(IFS=:; echo "${libraries[*]}")"
export PATH="$(echo "$PWD"/.venv-cuda/lib/python3*/site-packages/nvidia/cu13/bin):$PATH"
export JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 JAX_PLATFORMS=cpu
python -m benchmarks.attention compile --devices a100 h100 --implementation triton "$@"
python -m benchmarks.attention compile --devices h100 h200 --implementation mosaic_gpu "$@"
