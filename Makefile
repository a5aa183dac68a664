# Two commands from a fresh clone: `make demo` and `make test`. Everything lives in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export DS_BUILD_OPS := 0
export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test faults check format schemas docs pictures clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch numpy setuptools wheel
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/tide-cache demo --out demo-output

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

faults: $(STAMP)
	TIDE_CACHE_FAULTS=full TIDE_CACHE_FAULTS_JSON=faults.json OMP_NUM_THREADS=1 $(BIN)/pytest -p no:xdist tests/faults

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/tide-cache schema --check schemas
	$(BIN)/python -m benchmarks.pages
	$(BIN)/mkdocs build --strict

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: $(STAMP)
	$(BIN)/tide-cache schema --out schemas

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

pictures: $(STAMP)
	$(BIN)/python docs/pictures/draw.py

clean:
	rm -rf .venv build dist *.egg-info demo-output site
