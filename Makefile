# Everything works from a fresh clone with python3 (3.11 or later), pip and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fuzz quality style clean

demo: .venv/.installed  ## denoise the sample photograph and print what was gained
	$(BIN)/python examples/demo.py

test: quality  ## run every test
	$(BIN)/python -m pytest

fuzz: .venv/.installed-dev  ## read 10,000 damaged image files, others each time
	$(BIN)/python tests/fuzz.py --count 10000

quality: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The CPU build of torch comes first: a bare "torch" would bring gigabytes of CUDA libraries.
.venv/.torch:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/.installed-dev: .venv/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/.installed

clean:
	rm -rf .venv
