#!/usr/bin/env bash
# The long checks, after the short ones: tests marked slow, kernels through the TPU and
# CUDA compilers (which need no device; the CUDA build of jax is 3 GB), then the
# benchmarks whose figures the README quotes, but for `benchmarks.motion_stream`, which
# trains for an hour. About an hour and a half on 2 cores.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
bash launch/test.sh || exit 1
. .venv/bin/activate
export JAX_PLATFORMS=cpu
failed=0
python -m pytest -m slow
[ $? = 0 ] || failed=1
python -m benchmarks.attention compile || failed=1
python -m benchmarks.norms || failed=1
python -m benchmarks.context_parallel || failed=1
(bash launch/compile_cuda.sh) || failed=1
plan="-m avatar_jax.plan"
long="--frames 161 --references 12"
for size in "" "$long"; do
  python $plan --config configs/tavr.py --topology v6e:2x4 $size || failed=1
  .venv-cuda/bin/python $plan --config configs/tavr.py --topology h200:1 $size || failed=1
done
# The step of LARGE on 128 chips takes the compiler ten minutes and more.
python $plan --config configs/stage3_personality.py --model large --topology v5p:4x4x8 \
  $long --size 480x896 --batch 32 --config.human.view=24 --config.human.crop=18 || failed=1
python -m benchmarks.reference_scaling || failed=1
python -m benchmarks.reference_length || failed=1
python -m benchmarks.loader || failed=1
exit $failed
