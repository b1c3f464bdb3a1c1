# Everything works from a fresh clone with python3 (3.11 or later), pip and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fuzz quality style clean

demo: .venv/.installed  ## denoise the sample photograph and print its PSNR before and after
	$(BIN)/python examples/demo.py

test: quality  ## run every test
	$(BIN)/python -m pytest

fuzz: .venv/.installed-dev  ## read 10,000 damaged image files, others each time
	$(BIN)/python tests/fuzz.py --count 10000

quality: .venv/.installed-dev  ## lint, check the format and the types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: .venv/.installed-dev  ## mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On PyPI, torch for Linux is the CUDA build: 527 MB, and gigabytes of CUDA libraries with it. Without a GPU, run
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make test
# and pip takes the CPU build, 2.13.0+cpu, which it counts as newer. Elsewhere the index is not needed.
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
