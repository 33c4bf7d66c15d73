# make demo | test | check | soak | wheel | setup - each sets up what it needs in .venv, under constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test soak check format wheel clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt setup.py $(wildcard kernels/csrc/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,lint,uring,build]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest -m "not soak" -n 2 --dist worksteal

soak: setup
	$(BIN)/python -m pytest -m soak

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# The folders import as penstock.*, so the type checker looks at them under that name.
	mkdir -p build/types/penstock
	for part in kernels tiering runtime; do ln -sfn ../../../$$part build/types/penstock/$$part; done
	for part in __init__.py py.typed; do ln -sfn ../../../penstock/$$part build/types/penstock/$$part; done
	MYPYPATH=build/types $(BIN)/mypy -p penstock
	$(BIN)/python -m pytest tests/test_imports.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/_native.*
