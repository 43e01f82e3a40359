#!/usr/bin/env bash
# Everything there is to measure on one GPU, at CSM-1B's sizes with random weights, in one call.
# Needs torch, transformers, triton and pytest; neither a network nor livekit. Under nine minutes: each
# stage has its limit, results are written after each turn, and the next stage runs whatever happens.
#   bash benchmarks/gpu.sh [folder for the results]
#   DEVICE=cpu bash benchmarks/gpu.sh out/gpu    # the same stages, small, where there is no card
set -u -o pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
if [ "$device" = cpu ]; then
  name=cpu
  size=tiny engine="--size 137m --streams 1,2 --frames 2 --turns 1 --threads 1"
  first="--rates 1 --slots 2 --requests 2 --seconds 1 --threads 1"
  capacity="--streams 1,2 --seconds 1" eight="--model tiny --frames 2 --turns 1"
else
  name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())' 2>/dev/null) || name=
  if [ -z "$name" ]; then
    echo "benchmarks/gpu.sh: torch sees no CUDA device here." >&2
    exit 1
  fi
  size=csm-1b engine="--size csm-1b --streams 1,4,16,64 --frames 25 --turns 2"
  first="--rates 1,6,10 --slots 64 --requests 12 --seconds 6"
  capacity="--streams 64,256,512 --seconds 8 --rate 100" eight="--size csm-1b --frames 20 --turns 3"
fi
stem="$out/$name-$(date +%F)"
failed=0

stage() { # seconds, name, command...
  local limit=$1 label=$2
  shift 2
  echo "== $label"
  timeout "$limit" "$@" 2>&1 | sed '/^\[transformers\]/d' | tee "$stem-$label.log" || {
    echo "== $label FAILED"
    failed=1
  }
}

# The options are words, on purpose.
# shellcheck disable=SC2086
run() { # seconds, name, options...
  local limit=$1 label=$2
  shift 2
  stage "$limit" "$label" "$python" "benchmarks/${label//-/_}.py" --device "$device" --out "$stem-$label.json" $@
}

[ "$device" = cpu ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$stem-device.log"
stage 85 tests "$python" -m pytest -q -s -p no:cacheprovider --confcutdir=tests/gpu --rootdir=tests/gpu -c /dev/null tests/gpu
run 135 engine "$engine"
run 100 first-audio "--size $size $first"
run 160 capacity "--size $size $capacity"
run 50 eight-bit "$eight"
exit $failed
