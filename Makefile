# make demo   train on Tetrominoes, evaluate, report; REAL=file evaluates on that data set as well
# make test   lint, types, tests (in .venv, made when missing); make lint
# make test-slow      the tests that are marked as slow, which `make test` leaves out; CI runs both
# make test-all       everything that tests anything: all below but timings, with coverage; hours
# make coverage   the tests with coverage, which takes a quarter more time
# make test-simt      of these, the CUDA kernels on the CPU (docs/simt.md); test-simt-all: every way
# make test-machines  the numerical tests on stand-ins for other processors
# make test-aot       compile every Triton kernel in every size, also with the oldest Triton
#                     supported; prints a table (about 25 minutes of one core)
# make torture    kills, signals, full disks, pairs of runs, mutated files, random cases of operators:
#                 counts in RESULTS/torture-cpu.json; hours, and started again it goes on
# make sanitize       the C++ and CUDA kernels under ASan and UBSan, on the CPU
# make bench  time operators, training steps and rewritings into RESULTS (or one of these:
#             bench-ops, bench-step, bench-rewritings)
# make bench-check    REF=main: fails if the working tree is slower than that git reference
# make gpu    OUT=folder: all that needs a GPU (Python: PYTHON), benchmarks/gpu.sh; its calls leave
#             results in OUT/check, OUT/time and OUT/train; before that, to travel to a GPU machine
#             without a network: make gpu-wheels, and
#             make gpu-carry FIXTURES=folder OFFICIAL=checkout of the released code
# make venv   the environment of all these, .venv; make format, make clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
RESULTS := benchmarks/results
OLD_TRITON := build/triton-3.6.0
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f)
CXX_SOURCES = $(shell find csrc tests/simt -regex '.*\.\(h\|cpp\|cuh?\)')

.PHONY: venv lint test test-slow test-all coverage test-simt test-simt-all test-aot \
        bench bench-ops bench-step bench-rewritings bench-check sanitize torture test-machines gpu gpu-wheels gpu-carry demo format clean help

venv: $(VENV)/.installed

help:
	@sed -n '/^#/!q; s/^# //p' Makefile

# A virtual environment that exists already is kept and completed.
$(VENV)/.dependencies: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or \
	  sys.exit("emorl needs Python >= 3.11; $(PYTHON) is " + sys.version.split()[0] + \
	  " (choose another with make PYTHON=...)")'
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv module (on Debian: apt install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) setuptools cmake ninja pybind11 torch
	$(PIP) --no-build-isolation -e '.[train,triton,dev]'
	@touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(NATIVE)
	$(PIP) --no-build-isolation --no-deps -e .
	@$(BIN)/python -m emorl.info
	@touch $@

# Files are shared out to a process a core, each with one thread; tests of threads start their own.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
  -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy

test: lint
	$(PYTEST) -m "not slow"

test-slow: venv
	$(PYTEST) -m slow

coverage: venv
	$(PYTEST) --cov=emorl

test-all: lint coverage test-simt-all test-aot test-machines sanitize torture

test-simt: venv
	$(BIN)/python -m pytest tests/simt

test-simt-all: venv
	$(BIN)/python tests/simt/simt_all.py

# The oldest Triton lies in a folder of its own, beside the torch that is installed.
$(OLD_TRITON)/triton: | venv
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps \
	  --target $(OLD_TRITON) 'triton==3.6.0'

test-aot: venv $(OLD_TRITON)/triton
	$(BIN)/python tests/ops/aot.py $(OLD_TRITON)

bench: bench-ops bench-step bench-rewritings

bench-ops: venv
	@mkdir -p $(RESULTS)
	$(BIN)/python -m pytest benchmarks/test_ops.py --benchmark-json=$(RESULTS)/ops-cpu.json

bench-step: venv
	@mkdir -p $(RESULTS)
	$(BIN)/python -m pytest benchmarks/test_training_step.py \
	  --benchmark-json=$(RESULTS)/training-step-cpu.json

bench-rewritings: venv
	@mkdir -p $(RESULTS)
	$(BIN)/python -m emorl.bench.rewritings --out $(RESULTS)/rewritings-cpu.json

REF ?= main
bench-check: venv
	$(BIN)/python -m benchmarks.check --ref $(REF)

sanitize: venv
	benchmarks/sanitize.sh

torture: venv
	@mkdir -p $(RESULTS)
	$(BIN)/python tests/torture/run.py --out $(RESULTS)/torture-cpu.json

test-machines: venv
	$(BIN)/python tests/machines.py

# No `venv`: on a GPU machine torch and its tools are there already.
gpu:
	@test -n "$(OUT)" || { echo "OUT: expected a folder for what comes back"; exit 1; }
	status=0; for call in check time train; do \
	  OUT=$(OUT)/$$call PYTHON=$(PYTHON) benchmarks/gpu.sh $$call || status=$$?; \
	done; exit $$status

# What a machine with CUDA's PyTorch and its usual companions lacks, for its Python; it needs
# nothing else.
CARRIED := .gpu
WHEELS := google-crc32c
PLATFORMS := manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1
gpu-wheels:
	rm -rf $(CARRIED)/wheels
	$(PYTHON) -m pip --disable-pip-version-check download --quiet --no-deps \
	  --only-binary=:all: --python-version 3.12 --implementation cp \
	  $(PLATFORMS:%=--platform %_x86_64) -c constraints.txt -d $(CARRIED)/wheels $(WHEELS)

# Weights and pictures of the released code stay here: its modules are enough.
gpu-carry:
	@test -d "$(FIXTURES)/golden" || \
	  { echo "FIXTURES: expected a folder with data/ and golden/"; exit 1; }
	@test -f "$(OFFICIAL)/lib/model.py" || { echo "OFFICIAL: expected a checkout with lib/"; exit 1; }
	rm -rf $(CARRIED)/fixtures $(CARRIED)/official
	mkdir -p $(CARRIED)/fixtures $(CARRIED)/official
	cp -r $(FIXTURES)/data $(FIXTURES)/golden $(CARRIED)/fixtures
	cp -r $(OFFICIAL)/lib $(OFFICIAL)/LICENSE $(CARRIED)/official
	find $(CARRIED)/official -name '*.pth' -delete
	@$(PYTHON) -m benchmarks.carried $(CARRIED)

demo: venv
	$(BIN)/emorl train --config tetrominoes-laptop --out $(RUN) --resume auto
	$(BIN)/emorl evaluate $(RUN) --data tetrominoes --images 320 --disentanglement no
	$(BIN)/emorl evaluate $(RUN) --data tetrominoes-real10
	$(if $(REAL),$(BIN)/emorl evaluate $(RUN) --data $(REAL))
	$(BIN)/emorl report $(RUN)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

clean:
	rm -rf build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f emorl/_C*.so emorl/_build.json $(VENV)/.installed
