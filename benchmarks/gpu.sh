#!/usr/bin/env bash
# What to do with half an hour on a GPU machine without a network that is bare at the start.
#
#   OUT=folder benchmarks/gpu.sh [--help | --dry-run | --rehearse] STEP...
#
# STEP is one of the three calls (check, time, train), of at most 8 minutes each, or a part of one;
# `train` comes first to be cut, if less than 9 minutes are left. --dry-run lists the calls, with
# the seconds that --rehearse took for the same parts, small, on a CPU. `make gpu-carry` puts into
# .gpu/ what has to travel with the checkout: wheels, fixtures, released code. Beside these,
# .gpu/extension/ may hold the _C*.so and _build.json that `check` left in OUT, .gpu/run/ the
# run.tar of `train`, to go on with.
#
# Every part has a time limit (LIMIT: a lower one for all), and what it has written by then stays:
# JSON line by line, logs in one tar. OUT ends with at most 8 files of less than 16 MiB, if it is of
# one call, as those of `make gpu` are. parts.jsonl has the status of each part: 124 where the limit
# struck, 125 where no time was left, 3 of a training that went on without a CUDA graph.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-100000}
CALL=480  # seconds of a call; what stands last in it is cut first
GRACE=30  # seconds for a part to end by itself, once its limit struck: the trainer saves
AFTER=110 # seconds of a call for what follows training: that end, its tar, the evaluation
REHEARSAL=benchmarks/results/gpu-rehearsal-cpu.jsonl
CARRIED=.gpu
OPS=(tests/ops/test_{slot_attention,mixture_nll,spatial_broadcast,convolution}*.py)
declare -A PARTS=(
  [check]="wheels build native-is-there tests-native tests-graph tests-generator memcheck racecheck
    tests-triton"
  [time]="wheels extension native-is-there steps kernels ops ncu ops-compiled"
  [train]="wheels extension training evaluate"
)
declare -A LIMITS=(
  [wheels]=20 [build]=200 [extension]=200 [native-is-there]=20 [tests-native]=80 [tests-graph]=60
  [tests-generator]=20 [memcheck]=90 [racecheck]=90 [tests-triton]=120 [steps]=220 [kernels]=50
  [ops]=200 [ncu]=50 [ops-compiled]=120 [training]=370 [evaluate]=50
)

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
  sed -n '1d; /^#/!q; s/^# \{0,1\}//p' benchmarks/gpu.sh
  exit
fi
if [ "${1:-}" = --dry-run ] || [ "${1:-}" = --rehearse ]; then
  mode=$1
  shift
fi
DEVICE=cuda SLOWER=1
[ "${mode:-}" = --rehearse ] && DEVICE=cpu SLOWER=20 # a busy processor against a GPU

on_gpu() { [ $DEVICE = cuda ]; }
tests() { "$PYTHON" -m pytest -q -p no:cacheprovider "$@"; }

wheels() { # packages that the machine lacks
  if ! compgen -G "$CARRIED/wheels/*.whl" >/dev/null; then
    echo "no wheels in $CARRIED/wheels"
    return 0
  fi
  on_gpu || { ls $CARRIED/wheels; return 0; } # of another Python
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$SITE" \
    $CARRIED/wheels/*.whl
}
build() {
  local cuda=0
  on_gpu && cuda=1
  EMORL_CUDA=$cuda "$PYTHON" setup.py build_ext --inplace || return
  cp emorl/_C*.so emorl/_build.json "$OUT/"
}
extension() { # the one that was carried, if it loads
  if compgen -G "$CARRIED/extension/_C*.so" >/dev/null; then
    cp $CARRIED/extension/_C*.so $CARRIED/extension/_build.json emorl/
    native-is-there && return
  fi
  build
}
native-is-there() {
  "$PYTHON" -m emorl.info
  "$PYTHON" -c "
import sys
from emorl.ops import backends
missing = {op: found['native'] for op, found in backends('$DEVICE').items() if found['native']}
sys.exit(f'no native kernels on $DEVICE: {missing}' if missing else 0)"
}
in_parallel() { # where pytest-xdist is
  "$PYTHON" -c "import xdist" 2>/dev/null && echo "-n 8"
}
tests-native() { tests $(in_parallel) "${OPS[@]}" -k native; }
tests-graph() { tests tests/training/test_graph.py tests/test_host_waits.py; }
tests-generator() { tests tests/data/test_tetrominoes.py; }
tests-triton() { tests $(in_parallel) "${OPS[@]}" -k triton; }
sanitized() { # sanitized TOOL TESTS: our kernels alone, by their mangled names
  local tool=()
  on_gpu && tool=(compute-sanitizer --tool "$1" --error-exitcode 1
    --kernel-name kernel_substring=emorl)
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${tool[@]}" "$PYTHON" -m pytest -q -p no:cacheprovider \
    "${OPS[@]}" -k "native and (accurate or any_size) $2"
}
memcheck() { sanitized memcheck ""; }
racecheck() { # CUDA 13.0's stops with an internal error of its own in convolution's backward pass
  sanitized racecheck "and not test_convolution"
}
timed() { # timed PYTEST-EXPRESSION: a process per operator, as an error of CUDA ends one
  local small=() status=0
  on_gpu || small=(--benchmark-min-rounds=1 --benchmark-max-time=0.1)
  for operator in slot_attention mixture_nll spatial_broadcast convolution; do
    tests benchmarks/test_ops.py --json-lines "$OUT/ops.jsonl" "${small[@]}" \
      -k "test_operator and $operator and $1" || status=$?
  done
  return $status
}
ops() {
  local which="not compiled and not B2K7" # without the widths of other networks
  on_gpu || which="(native or plain) and (B32K4 or M32C16 or C32D32)"
  timed "$which"
}
ops-compiled() {
  local which="compiled and backward and (float32 or bfloat16) and not B2K7"
  on_gpu || which="compiled and (B32K4C3 or B32K4N1225D64shared or M32C16 or C32D32)"
  timed "$which"
}
steps() {
  local options=(--batch 32 --budget 150s) # what it has begun then, it ends
  on_gpu || options=(--batch 2 --sizes 35 --budget 60s)
  "$PYTHON" -m emorl bench --suite step --official $CARRIED/official --device $DEVICE \
    --models efficient_morl "${options[@]}" --out "$WORK/step"
}
kernels() {
  local options=(--cases tetrominoes:32:3 multi_dsprites:32:3 clevr6:32:3 --variants tf32 bf16)
  on_gpu || options=(--cases tetrominoes:2:1)
  "$PYTHON" -m emorl.bench.step_kernels --device $DEVICE "${options[@]}" --out "$OUT/kernels.json"
}
ncu() {
  local tool=()
  on_gpu && tool=(command ncu --clock-control none --kernel-name-base mangled
    --kernel-name regex:emorl --section SpeedOfLight --section MemoryWorkloadAnalysis
    --section Occupancy --section LaunchStats --csv --log-file "$OUT/ncu.csv")
  "${tool[@]}" "$PYTHON" -m emorl.bench.ops.once --device $DEVICE
}
train() { # train CUDA-GRAPH: what is left, less AFTER and 70 s to start, capture and report
  local left=$((DEADLINE - SECONDS - AFTER - 70)) config=(--config smoke --trainer.device cpu)
  on_gpu && config=(--config tetrominoes --trainer.cuda_graph "$1"
    --trainer.max_minutes "$(awk "BEGIN { print $left / 60 }")"
    --trainer.checkpoint_every 2000 --trainer.keep_checkpoints 1 --trainer.picture_every 0)
  "$PYTHON" -m emorl train "${config[@]}" --out "$WORK/run" --resume auto
}
training() {
  local run=$WORK/run
  mkdir -p "$run"
  [ -f $CARRIED/run/run.tar ] && tar -C "$run" -xf $CARRIED/run/run.tar
  train true && return
  echo "training in a CUDA graph failed; without one:"
  train false && return 3
}
keep() { # keep PART: what it left in WORK, also where its limit struck
  [ "$1" = steps ] && cp "$WORK/step/step.json" "$OUT/steps.json"
  [ "$1" = training ] || return 0
  cp "$WORK/run/metrics.jsonl" "$OUT/"
  tar -C "$WORK/run" --exclude=tensorboard --exclude=pictures -cf "$OUT/run.tar" .
}
evaluate() {
  "$PYTHON" -m emorl evaluate "$WORK/run" --data tetrominoes --images 320 --disentanglement no \
    --json "$OUT/evaluation.json"
}

row() { # row PART STATUS SECONDS
  [ "$2" -gt $worst ] && worst=$2
  printf '{"part": "%s", "device": "%s", "status": %d, "seconds": %d}\n' "$1" $DEVICE "$2" "$3" |
    tee -a "$OUT/parts.jsonl"
}
part() { # part NAME: run it within its limit, keep its log and its status
  local name=$1 start=$SECONDS status limit=$((SLOWER * LIMITS[$1]))
  local left=$((DEADLINE - SECONDS)) log=$WORK/logs/$1.log
  [ "$name" = training ] && left=$((left - AFTER))
  [ "$limit" -gt $left ] && limit=$left
  [ "$limit" -gt "$LIMIT" ] && limit=$LIMIT
  if [ "$limit" -le 0 ]; then
    row "$name" 125 0 # no time left
    return 125
  fi
  # `timeout` signals all processes of the part; its shell ends when the one it waits for has ended
  timeout -k "$GRACE" "$limit" "$BASH" -c "trap exit TERM
    $(declare -p DEVICE PYTHON CARRIED OPS OUT WORK SITE SECONDS DEADLINE AFTER)
    $(declare -f); $name" >"$log" 2>&1
  status=$?
  keep "$name" >>"$log" 2>&1
  row "$name" $status $((SECONDS - start))
  [ $status -ne 0 ] && tail -n 15 "$log"
  tail -c 2000000 "$log" >"$WORK/logs/.cut" && mv "$WORK/logs/.cut" "$log"
  tar -C "$WORK" -czf "$WORK/logs.tar.gz" logs && mv "$WORK/logs.tar.gz" "$OUT/logs.tar.gz"
  return $status
}
small_enough() { # what does not come back, were it kept
  local files
  files=$(find "$OUT" -type f | wc -l)
  [ "$files" -le 8 ] || echo "$OUT: $files files, expected at most 8"
  find "$OUT" -type f -size +16383k -printf '%f: 16 MiB or more\n'
}
listed() { # listed CALL
  [ -n "${PARTS[$1]:-}" ] && echo "$1: at most $CALL s in all"
  for name in ${PARTS[$1]:-$1}; do
    local seconds
    seconds=$(sed -n "s/.*\"part\": \"$name\".*\"seconds\": \([0-9]*\).*/\1 s here, on a CPU/p" \
      $REHEARSAL 2>/dev/null | tail -n 1)
    printf '  %-16s at most %3d s   %s\n' "$name" "${LIMITS[$name]}" "${seconds:-not run here}"
  done
}

[ $# -eq 0 ] && set -- check time train
for step in "$@"; do
  if [ -z "${PARTS[$step]:-}${LIMITS[$step]:-}" ]; then
    echo "gpu.sh: expected one of ${!PARTS[*]} ${!LIMITS[*]}, got $step" >&2
    exit 2
  fi
  [ "${mode:-}" = --dry-run ] && listed "$step"
done
[ "${mode:-}" = --dry-run ] && exit 0

: "${OUT:?expected OUT=folder for what comes back}"
[[ $LIMIT =~ ^[0-9]+$ ]] || { echo "LIMIT: expected seconds, got $LIMIT" >&2; exit 2; }
OUT=$(realpath -m "$OUT")
WORK=$(mktemp -d)
SITE=$WORK/site
mkdir -p "$OUT" "$WORK/logs"
export PYTHONPATH=$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
[ -d $CARRIED/fixtures ] && export EMORL_FIXTURES=$PWD/$CARRIED/fixtures
if on_gpu; then
  "$PYTHON" -c '
import importlib.util, sys
if importlib.util.find_spec("torch") is None:
    sys.exit(3)
import torch
sys.exit(not torch.cuda.is_available())'
  case $? in
    0) ;;
    3) echo "gpu.sh: $PYTHON has no torch; PYTHON=FILE takes another one" >&2 && exit 1 ;;
    126 | 127) echo "gpu.sh: PYTHON: expected a program, got $PYTHON" >&2 && exit 1 ;;
    *) echo "no GPU that torch can use; see --dry-run and --rehearse" >&2 && exit 1 ;;
  esac
fi
worst=0 DEADLINE=$((SECONDS + SLOWER * CALL))
for step in "$@"; do
  [ -n "${PARTS[$step]:-}" ] && DEADLINE=$((SECONDS + SLOWER * CALL)) # a call has its own
  for name in ${PARTS[$step]:-$step}; do
    if ! part "$name" && [ "$name" = native-is-there ]; then
      echo "stopped: nothing below means anything without the kernels" >&2
      break 2
    fi
  done
done
small_enough
exit $worst
