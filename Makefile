# Each target sets up .venv by itself. The first two are all a newcomer needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
MAKEFLAGS += --no-builtin-rules

.PHONY: demo test lint clean setup

demo: $(INSTALLED)      ## the whole road on real text, into runs/demo (SHORT=1: the form CI runs)
	$(BIN)/python examples/demo/demo.py $(if $(SHORT),--short)

test: $(INSTALLED)      ## every test that is not marked slow or gpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(INSTALLED)      ## style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:                  ## what the build and the runs made; downloads go too
	rm -rf .venv build runs *.egg-info $$(find . -name __pycache__ -not -path './.venv/*') data_tools/ziya_data/*.so

setup: $(INSTALLED)     ## only the set-up

$(INSTALLED): pyproject.toml setup.py constraints.txt $(wildcard data_tools/csrc/*.* data_tools/csrc/*/*.*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	@command -v g++ >/dev/null || { echo "g++ is needed for the C++ extension; install it (Debian: g++)"; exit 1; }
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo 'installing into .venv; minutes the first time'
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,demo]'
	touch $@
