# make demo      decode problems with the bundled model one token at a time and fast, side by side
# make smoke     run one case of every quick test (a minute and a half on two cores)
# make test      run the tests, every policy with every cache among them (7 to 8 minutes)
# make test-all  run the tests, every combination of these (nightly)
# make check     lint, format, types, floors
# make format    repair what the linter and the formatter can
# make pictures  draw the pictures of the documentation again, and write the tables of docs/methods
# make clean     remove the environment and caches
#
# Each makes its own environment in .venv first; PYTHON=python3.12 chooses the interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST_ARGS ?= -n auto --dist loadgroup
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
INPUTS = pyproject.toml constraints.txt

.PHONY: demo smoke test test-all check format pictures clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

smoke: $(VENV)/.installed-test
	$(PYTEST) $(PYTEST_ARGS) -m smoke

test: $(VENV)/.installed-test
	$(PYTEST) $(PYTEST_ARGS)

test-all: $(VENV)/.installed-test
	UNMASK_ALL=1 $(PYTEST) $(PYTEST_ARGS)

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) tests/test_floors.py

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pictures: $(VENV)/.installed
	$(BIN)/python examples/picture.py docs/img/side_by_side.svg
	$(BIN)/unmask generate "$$RECORD" --gen-length 64 --policy slowfast --cache "dllm(kp=2,kr=1)" \
	    --picture docs/img/decoding.svg --animate
	$(BIN)/python examples/method_pages.py

define RECORD
The age of Rosa Reed is 38. There is a snake at home. Home is Prague. The front door is green.
Work means being a barber. Give a record with home, age, work, pet, color, name
endef
export RECORD

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@ $(VENV)/.installed
