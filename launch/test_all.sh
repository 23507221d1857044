#!/usr/bin/env bash
# The long checks, after the short ones: tests marked slow, then the benchmarks whose
# figures the README quotes. About half an hour on 2 cores.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
bash launch/test.sh || exit 1
. .venv/bin/activate
export JAX_PLATFORMS=cpu
failed=0
python -m pytest -m slow
case $? in 0 | 5) ;; *) failed=1 ;; esac # 5: there is none yet
python -m benchmarks.reference_scaling || failed=1
python -m benchmarks.loader || failed=1
exit $failed
