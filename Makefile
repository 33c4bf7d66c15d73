# make demo | test | check | docs | soak | sanitize | emulated | fuzz | wheel | setup - each sets up what it needs in .venv, under constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test soak sanitize emulated fuzz check types docs format wheel clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt setup.py $(wildcard kernels/csrc/*.[ch] kernels/csrc/*/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,lint,docs,uring,build,fuzz]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest -m "not soak" -n 3 --dist worksteal

soak: setup
	$(BIN)/python -m pytest -m soak --hypothesis-profile random

# The tests of the kernels on kernels that report every access outside of memory, at each level of instructions.
sanitize: setup
	$(BIN)/python -m tests.sanitize

# The kernels on processors that are emulated, x86-64 with AVX2 and AArch64 with NEON, beside plain C here.
emulated: setup
	$(BIN)/python -m tests.emulated

# Files of every kind, changed as an attacker would, at random and by what they reach, and planes for the kernels: an hour
# in three equal parts; MINUTES says otherwise.
fuzz: THIRD = $(shell expr $(or $(MINUTES),60) \* 20)
fuzz: setup
	failed=0; \
	$(BIN)/python -m tests.hostile --seconds $(THIRD) || failed=1; \
	$(BIN)/python -m tests.hostile.guided --all --seconds $(THIRD) || failed=1; \
	$(BIN)/python -m tests.sanitize.fuzz $(THIRD) || failed=1; \
	exit $$failed

check: types docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/types $(BIN)/mypy -p penstock
	MYPYPATH=build/types $(BIN)/mypy bench
	MYPYPATH=build/types $(BIN)/mypy examples
	$(BIN)/python -m pytest tests/test_imports.py

# The folders import as penstock.*, so the type checker and the reference look at them under that name.
types: setup
	mkdir -p build/types/penstock
	for part in kernels tiering runtime; do ln -sfn ../../../$$part build/types/penstock/$$part; done
	for file in penstock/*.py penstock/py.typed; do ln -sfn ../../../$$file build/types/$$file; done

docs: types
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup
	$(BIN)/python -m build --outdir dist

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/_native.*
