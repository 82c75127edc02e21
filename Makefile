# make test   what CI runs: lint, types, tests with coverage (in .venv, made when missing)
# make test-simt   of these, the CUDA kernels on the CPU (docs/simt.md); test-simt-all: in every way
# make bench  time operators, training steps and rewritings into RESULTS (or one of these:
#             bench-ops, bench-step, bench-rewritings); make sanitize: C++ under ASan and UBSan;
#             make gpu OUT=folder: all that needs a GPU (Python: PYTHON)
# make demo   train on Tetrominoes, evaluate, report; REAL=file evaluates on that data set as well
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
RESULTS := benchmarks/results
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: venv test test-simt test-simt-all bench bench-ops bench-step bench-rewritings sanitize gpu demo format clean

venv: $(VENV)/.installed

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

test: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --cov=emorl

test-simt: venv
	$(BIN)/python -m pytest tests/simt

test-simt-all: venv
	$(BIN)/python tests/simt/simt_all.py

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
	$(BIN)/python -m benchmarks.rewritings --out $(RESULTS)/rewritings-cpu.json

sanitize: venv
	benchmarks/sanitize.sh

# No `venv`: on a GPU machine torch and its tools are there already.
gpu:
	OUT=$(OUT) PYTHON=$(PYTHON) benchmarks/gpu.sh

demo: venv
	$(BIN)/emorl train --config tetrominoes-laptop --out $(RUN) --resume auto
	$(BIN)/emorl evaluate $(RUN) --data tetrominoes --images 320
	$(BIN)/emorl evaluate $(RUN) --data tetrominoes-real10
	$(if $(REAL),$(BIN)/emorl evaluate $(RUN) --data $(REAL))
	$(BIN)/emorl report $(RUN)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f emorl/_C*.so emorl/_build.json $(VENV)/.installed
