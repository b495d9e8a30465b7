PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
LOWEST  = .venv-lowest

# Where it is set, each of the many processes that tests start would compile every module of ours anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-lowest lint types bench soak clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Slotline needs Python >= 3.11; name one with: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(LOWEST)/.installed: pyproject.toml tests/lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --constraint tests/lowest.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## show the main job on both queues, without any server
	$(BIN)/python examples/demo.py

test: $(STAMP) ## run the tests; they start their own servers
	$(BIN)/python -m pytest $(ARGS)

test-lowest: $(LOWEST)/.installed ## run the tests of what the frameworks touch on the lowest supported versions
	$(LOWEST)/bin/python -m pytest -m "lowest and not soak and not bench" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing

bench: ## measure side by side with the physical limits and the peers: make bench NAMES="pools cache"
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --editable '.[dev]' --requirement tests/bench/requirements.txt
	.venv-bench/bin/python -m tests.bench $(NAMES)

soak: $(STAMP) ## long randomised runs: make soak SECONDS=600
	SOAK_SECONDS=$(SECONDS) $(BIN)/python -m pytest -m soak --timeout 0 $(ARGS)

clean:
	rm -rf $(VENV) .venv-* dist build .mypy_cache .ruff_cache .pytest_cache
