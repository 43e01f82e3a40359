#!/usr/bin/env bash
# Everything there is to measure on one GPU, at CSM-1B's sizes with random weights, in one call.
# Needs torch, transformers, triton and pytest; neither a network nor livekit. Under nine minutes.
#   bash benchmarks/gpu.sh [folder for the results]
set -u
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results}
mkdir -p "$out"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python3}
name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-").lower())' 2>/dev/null)
if [ -z "$name" ]; then
  echo "benchmarks/gpu.sh: torch sees no CUDA device here." >&2
  exit 1
fi
stem="$out/$name-$(date +%F)"
failed=0

stage() { # seconds, name, command...: bounded, and the next stage runs whatever happens
  local limit=$1 label=$2
  shift 2
  echo "== $label"
  timeout "$limit" "$@" 2>&1 | grep -v '^\[transformers\]' | tee "$stem-$label.log"
  [ "${PIPESTATUS[0]}" -eq 0 ] || { echo "== $label FAILED"; failed=1; }
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$stem-device.log"
stage 80 tests "$python" -m pytest -q -p no:cacheprovider --confcutdir=tests/gpu --rootdir=tests/gpu -c /dev/null tests/gpu
stage 140 engine "$python" benchmarks/engine.py --size csm-1b --device cuda --streams 1,4,16,64 --frames 25 --out "$stem-engine.json"
stage 105 first-audio "$python" benchmarks/first_audio.py --size csm-1b --device cuda --rates 1,6,10 --slots 64 --out "$stem-first-audio.json"
stage 165 capacity "$python" benchmarks/capacity.py --size csm-1b --device cuda --streams 64,256,512 --seconds 8 --rate 100 --out "$stem-capacity.json"
stage 45 eight-bit "$python" benchmarks/eight_bit.py --size csm-1b --device cuda --frames 20 --out "$stem-eight-bit.json"
exit $failed
