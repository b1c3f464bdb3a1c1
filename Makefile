# Everything works from a fresh clone with python3 (3.11 or later), pip and make.
PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0
# A file is run by one process, since its tests share servers and models, in the order that tests/conftest.py gives.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast peers fuzz quality style clean

demo: .venv/.installed  ## denoise the sample photograph and print its PSNR before and after
	$(BIN)/python examples/demo.py

test: quality peers  ## run every test, on all cores
	$(PYTEST)

test-fast: .venv/.installed-dev  ## run the unit tests: none that trains, or starts a server or a browser
	$(PYTEST) -m "not slow"

peers: .venv/.installed-peers  ## install spandrel and deepinv, to compare with; see docs/measuring.md

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
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/.installed-dev: .venv/.torch pyproject.toml
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/.installed

# Apart from the rest, since diffusers imports torchvision where there is one, and that has to fit torch.
.venv/.installed-peers: .venv/.torch Makefile
	$(BIN)/pip install --quiet --upgrade --no-deps --target .venv/peers \
		torchvision==0.28.0 spandrel==0.4.2 deepinv==0.5.0 einops natsort torchmetrics lightning-utilities
	touch $@

clean:
	rm -rf .venv
