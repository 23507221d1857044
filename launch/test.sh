#!/usr/bin/env bash
# Check everything that a change may break: lint, floors, types, tests. From a bare clone,
# on a CPU; arguments go to pytest (bash launch/test.sh tests/flow).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
. launch/venv.sh
make_venv -e '.[dev]' || exit 2
export JAX_PLATFORMS=cpu
failed=0
ruff check . || failed=1
ruff format --check . || failed=1
lint-imports || failed=1
# A file a process: most tests wait for the compiler, which uses one core.
python -m pytest -n 2 --dist loadfile "$@" || failed=1
exit $failed
