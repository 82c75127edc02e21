#!/usr/bin/env bash
# The C++ operators under AddressSanitizer and UndefinedBehaviorSanitizer: a copy of the package is
# built in build/sanitize, and the operators' tests run on it; then the CUDA kernels on the CPU
# (docs/simt.md), in build/simt-sanitize. SIMT_ORDER chooses the order of their threads.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
COPY=build/sanitize
mkdir -p $COPY
for folder in emorl csrc tests benchmarks; do
  rm -rf "${COPY:?}/$folder"
  cp -r $folder $COPY/
done
cp setup.py CMakeLists.txt pyproject.toml README.md LICENSE $COPY/
cd $COPY
rm -f emorl/_C*.so
EMORL_SANITIZE=1 EMORL_CUDA=0 "$PYTHON" setup.py -q build_ext --inplace

# Python itself leaks, so leaks are not looked for. libstdc++ must be there before libasan looks
# for __cxa_throw.
runtime=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libstdc++.so.6)
# pytest must not catch what they report before they end the process.
run_tests() {
  env LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 OMP_NUM_THREADS=2 \
    "$PYTHON" -m pytest -q --capture=sys -p no:cacheprovider "$@" \
    tests/ops/test_{slot_attention,slot_iterations,mixture_nll,spatial_broadcast,convolution,odd_cases}*.py
}
run_tests -k "not triton" "$@"

cd ../..
"$PYTHON" tests/simt/simt_build.py
export SIMT_ORDER=${SIMT_ORDER:-random} PYTHONPATH=tests/simt:${PYTHONPATH:-}
run_tests -p simt_plugin -o pythonpath=build/simt-sanitize "$@"
