#!/usr/bin/env bash
# Everything that needs a GPU, in one command: build with CUDA, test, look for memory errors, time.
#
#   OUT=folder benchmarks/gpu.sh              logs and timings go to OUT
#   OUT=folder benchmarks/gpu.sh --dry-run    says what would run
#
# PYTHON chooses the interpreter. Every step runs, whatever became of those before it; the exit
# status is that of the worst.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=$(realpath -m "${OUT:?expected OUT=folder for logs and timings}")
PYTHON=${PYTHON:-python3}
DRY_RUN=${1:-}
OP_TESTS=(tests/test_slot_attention*.py tests/test_mixture_nll*.py tests/test_spatial_broadcast*.py)
worst=0
mkdir -p "$OUT"

step() {  # step NAME COMMAND...
  local name=$1 start=$SECONDS status
  shift
  if [ "$DRY_RUN" = --dry-run ]; then
    echo "$name: $*"
    return
  fi
  "$@" >"$OUT/$name.log" 2>&1
  status=$?
  [ $status -gt $worst ] && worst=$status
  echo "$name: exit status $status, $((SECONDS - start)) s" | tee -a "$OUT/summary.txt"
  [ $status -ne 0 ] && tail -n 25 "$OUT/$name.log"
  return 0
}

check() {  # check TOOL...: run the operators' tests of one GPU backend under compute-sanitizer
  step "sanitizer-$1" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$1" --error-exitcode 1 --kernel-name-exclude kernel_substring=at:: \
    "$PYTHON" -m pytest -q "${OP_TESTS[@]}" -k "native and accurate"
}

if [ "$DRY_RUN" != --dry-run ] && ! "$PYTHON" -c \
  'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "no GPU that torch can use; --dry-run says what would run" >&2
  exit 1
fi
step build env EMORL_CUDA=1 "$PYTHON" setup.py build_ext --inplace
step info "$PYTHON" -m emorl.info
step test-ops-gpu "$PYTHON" -m pytest -q "${OP_TESTS[@]}"
step test-ops-cpu env EMORL_TEST_DEVICE=cpu "$PYTHON" -m pytest -q "${OP_TESTS[@]}"
step test-rest "$PYTHON" -m pytest -q tests
for tool in memcheck racecheck initcheck; do
  if command -v compute-sanitizer >/dev/null; then
    check $tool
  else
    echo "sanitizer-$tool: skipped, compute-sanitizer is not on the PATH"
  fi
done
for part in ops training_step; do
  step benchmark-$part "$PYTHON" -m pytest -q "benchmarks/test_$part.py" \
    --benchmark-json="$OUT/$part-gpu.json"
done
exit $worst
