# Two commands from a fresh clone: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Not compiled ahead, which would be most of the time: Python compiles what it imports, and must be let to keep that.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt
BASE := .venv/.installed
DEV := .venv/.installed-dev
export DS_BUILD_OPS := 0
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test test-full faults check format schemas docs pictures clean

# What the commands need, and matplotlib for pictures. DeepSpeed's setup imports torch, hence its line of its own.
$(BASE): pyproject.toml constraints.txt
	@echo "Installing tide-cache into .venv (torch is the largest part)"
	$(PYTHON) -m venv .venv
	$(PIP) torch numpy setuptools wheel
	@echo "Installing DeepSpeed"
	$(PIP) --no-build-isolation deepspeed
	@echo "Installing everything else that the demonstration needs"
	$(PIP) --no-build-isolation -e '.[report]'
	@touch $(BASE)

# What tests, checks and the site need on top.
$(DEV): $(BASE)
	@echo "Installing what tests and docs need"
	$(PIP) --no-build-isolation -e '.[dev]'
	@touch $(DEV)

demo: $(BASE)
	$(BIN)/tide-cache demo --out demo-output

test: $(DEV)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

# Every test in its full form, and every process started as a user starts it, none forked.
test-full: $(DEV)
	TIDE_CACHE_TESTS=full OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

faults: $(DEV)
	TIDE_CACHE_FAULTS=full TIDE_CACHE_FAULTS_JSON=faults.json OMP_NUM_THREADS=1 $(BIN)/pytest -p no:xdist tests/faults tests/training/test_fresh_processes.py

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/tide-cache schema --check schemas
	$(BIN)/python -m benchmarks.pages
	$(BIN)/mkdocs build --strict
	TIDE_CACHE_SITE=site $(BIN)/pytest -p no:xdist -q tests/docs/test_site.py

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(DEV)
	$(BIN)/tide-cache schema --out schemas

docs: $(DEV)
	$(BIN)/mkdocs build --strict

pictures: $(DEV)
	$(BIN)/python docs/pictures/draw.py
	$(BIN)/python docs/pictures/families.py

clean:
	rm -rf .venv build dist *.egg-info demo-output site
