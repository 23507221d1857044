# Sourced by the scripts beside it, from the root of the clone.
#
# make_venv WHAT...: make or reuse .venv, install WHAT with pip, activate it and set
# VENV_SECONDS to how long that took. Installs again only after the files that name the
# packages have changed. PYTHON=... picks the interpreter, VENV_FOLDER=... another folder.

make_venv() {
  local started=$SECONDS folder=${VENV_FOLDER:-.venv} stamp wanted
  if [ ! -x "$folder/bin/python" ]; then
    local python
    python=$(_find_python) || return 2
    "$python" -m venv "$folder" || { rm -rf "$folder"; return 2; }
  fi
  # shellcheck disable=SC1091
  . "$folder/bin/activate"
  stamp=$folder/.installed-$(echo "$*" | cksum | cut -d' ' -f1)
  wanted=$(cat requirements.txt pyproject.toml | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $folder (a few minutes the first time)"
    python -m pip install --quiet --disable-pip-version-check "$@" || return 2
    echo "$wanted" >"$stamp"
  fi
  VENV_SECONDS=$((SECONDS - started))
  # Without an accelerator JAX would look for one, slowly and loudly.
  if [ -z "${JAX_PLATFORMS:-}" ] && ! ls /dev/accel* /dev/vfio/* /dev/nvidia* \
    >/dev/null 2>&1; then
    export JAX_PLATFORMS=cpu
  fi
}

_find_python() {
  local name
  for name in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return 0
    fi
  done
  echo "error: expected Python 3.11 or newer, found $(python3 --version 2>&1);" \
    "install one, or name it with PYTHON=..." >&2
  return 1
}
