#!/usr/bin/env bash
# Make a talking video and score the model, from a bare clone, on a CPU.
#
#   bash launch/demo.sh [--out DIR] [--reference VIDEO --audio SPEECH] [--train]
#
# Leaves avatar.mp4, side_by_side.mp4, report.html and metrics.json in DIR (demo_out/).
# --reference and --audio: avatar.mp4 is the person of VIDEO saying SPEECH; by giving them
# you state that this person agreed to it. --train: train the weights first.
set -u
arguments=() # relative paths are the user's, not the clone's
while [ $# -gt 0 ]; do
  case $1 in --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;; esac
  case $1 in
    --out | --reference | --audio | --weights)
      [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
      case $2 in /*) path=$2 ;; *) path=$PWD/$2 ;; esac
      arguments+=("$1" "$path")
      shift 2
      ;;
    *)
      arguments+=("$1")
      shift
      ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
. launch/venv.sh
make_venv -r requirements.txt || exit 2
exec python -m avatar_jax.demo --seconds-install "$VENV_SECONDS" ${arguments[@]+"${arguments[@]}"}
