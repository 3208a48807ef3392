# The two main targets are `make demo` and `make test`. Both install what they need into .venv.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
LITE := plugins/autotl-efficientnet-lite
export OMP_NUM_THREADS ?= 1

.PHONY: demo install test lint check constraints clean

demo: install
	test -d data/digits || $(BIN)/autotl sample digits data/digits
	$(BIN)/autotl search data/digits --trials 20 --budget 5m --backbones 'autotl:*,timm:tf_efficientnet_lite0.in1k'

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt $(wildcard $(LITE)/*.py $(LITE)/*.toml)
	$(PYTHON) -c 'import sys; sys.exit("autotl needs Python 3.11 or newer; run make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt \
		--reinstall-package autotl-efficientnet-lite --editable '.[dev]'
	touch $@

test: lint check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: install
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

constraints: install
	echo '.[dev]' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --no-annotate --no-header \
		--no-emit-package autotl --no-emit-package autotl-efficientnet-lite --output-file constraints.txt -

clean:
	rm -rf .venv data/digits autotl-studies
