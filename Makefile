# Every target makes the environment it needs in .venv, once; it is made again when pyproject.toml or constraints.txt
# change. Another interpreter: make test PYTHON=/path/to/python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --no-compile --prefer-binary --disable-pip-version-check --no-input
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
REQUIREMENTS := pyproject.toml constraints.txt
# Two workers with one thread each: on two busy cores a third of the time of one process with two threads.
# A file stays in one worker: what its tests share may take a minute to start.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help quickstart test check format clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

quickstart: $(VENV)/.core ## train the story model for a few minutes on the CPU and watch it write
	$(BIN)/python experiments/quickstart.py

test: $(VENV)/.dev ## run all tests
	$(PYTEST) -q -n 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev ## lint, format, types, import directions and the contents of the wheel
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy diffusion_mlm
	$(PYTEST) -q tests/test_imports.py tests/test_packaging.py

format: $(VENV)/.dev ## rewrite the sources in the project's format
	$(BIN)/python -m ruff check --fix-only --quiet .
	$(BIN)/python -m ruff format .

clean: ## remove the environment, caches and builds
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv writes, so a venv that was interrupted is made again.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "PYTHON=$(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, as exactly the pinned version: where a CPU build of it is at hand pip takes that one, while
# a wider request could bring the CUDA libraries, some gigabytes. Byte-compiling all that is installed takes a minute;
# --no-compile leaves it out, and only what this project imports is compiled, whatever PYTHONDONTWRITEBYTECODE says.
define install
	@echo "Installing $(TORCH) and $(1) into $(VENV): a minute or two, once."
	$(PIP_INSTALL) -c constraints.txt $(TORCH)
	$(PIP_INSTALL) -c constraints.txt -e $(2)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import datasets, evaluate, rich.live, torch._dynamo; from transformers \
	    import AutoModelForMaskedLM, AutoTokenizer, HfArgumentParser, RobertaForMaskedLM, Trainer, pipeline"
	@touch $(3)
endef

$(VENV)/.core: $(REQUIREMENTS) | $(BIN)/pip
	$(call install,the libraries,.,$@)

$(VENV)/.dev: $(REQUIREMENTS) | $(BIN)/pip
	$(call install,the libraries and tools for tests,'.[dev]',$(VENV)/.core $@)
