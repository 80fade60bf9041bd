# Two commands do all the set-up: `make demo` and `make test`. Both make the virtual environment they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint check check-hostile check-fuzz check-browser format docs clean

# pip, not a faster installer: where the machine's pip is told of a CPU build of torch, it takes that.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	rm -rf demo
	$(BIN)/neuralsanitizer demo --output demo

# Each test file in one process, as many files at once as there are cores.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

# Bad inputs, each to a program of its own, with time and memory: some ten minutes.
check-hostile: $(VENV)/installed
	$(BIN)/python tests/hostile_inputs.py

# Damaged files at random, for FUZZ_SECONDS (60).
check-fuzz: $(VENV)/installed
	$(BIN)/python -X faulthandler tests/fuzz.py

# The documentation and the demo's report in headless Chromium, which must be installed; `make demo` comes first.
check-browser: docs
	$(BIN)/pip install --quiet --disable-pip-version-check 'playwright>=1.50'
	$(BIN)/python tests/browser.py site demo/backdoored-run/report.html

format: $(VENV)/installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf $(VENV) demo runs site fuzz-crashes .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
