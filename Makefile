# Everything works on a fresh clone with only Python 3, git and make: the first target that needs it creates .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PLUGINS := $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml))
# imported by benchmarks; or run by hand: a pipeline to judge, a folder, a peer, days of training, or the weights that all distances rest on
APART   := $(addprefix benchmarks/,common.py fashion.py arms.py peer.py samplers.py step_adaptive.py frontier.py frontier_plot.py gpu.py step_adaptive_plots.py step_adaptive_ideas.py \
           step_adaptive_swaps.py step_adaptive_starts.py train_speed.py train_features.py supported_networks.py supported_page.py \
           supported_peer.py verdicts.py candidates.py isolated.py torchvision_ops.py tiny_configs.py networks_torchvision.py \
           networks_timm.py networks_transformers.py networks_diffusers.py real_networks.py real_subjects.py)

.DEFAULT_GOAL := help
# Versions of torch besides that of constraints.txt: the lower bound of pyproject.toml, and whatever is newest.
TORCH_OLDEST := 2.8.0
TORCH_TESTS  := tests/tracing tests/coupling tests/graph tests/surgery tests/planning tests/applying tests/scoring tests/compensation tests/saving tests/api/test_golden.py

.PHONY: help demo test test-fast torch-versions torch-oldest torch-newest durations check format docs wheel local-llm bench zoo clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --no-compile: a module is compiled when it is first imported; most modules never are, and compiling all takes about a minute.
$(STAMP): pyproject.toml constraints.txt $(addsuffix /pyproject.toml,$(PLUGINS))
	$(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (several minutes, about 2 GB with PyTorch)"
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e ".[all]"
	$(BIN)/python -m pip install --quiet --no-deps $(addprefix -e ,$(PLUGINS))
	@touch $@

.venv: $(STAMP) ## create the virtual environment with the tested versions

demo: $(STAMP) ## train a small diffusion U-Net, then describe, score and prune it; then step-adaptive
	$(BIN)/python examples/demo.py --out demo-output

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n 2

test-fast: $(STAMP) ## run the tests that are quick, for the daily loop
	$(BIN)/python -m pytest -n 2 -m "not slow and not local_llm"

# Besides torch, the versions of constraints.txt. Environments stay, so that a second run only tests; torch-newest looks for a newer release.
define with_torch
$(PYTHON) -m venv .venv-torch-$(1)
grep -v '^torch==' constraints.txt > .venv-torch-$(1)/constraints.txt
.venv-torch-$(1)/bin/python -m pip install --quiet --no-compile --upgrade -c .venv-torch-$(1)/constraints.txt "$(2)" -e ".[all]"
.venv-torch-$(1)/bin/python -c "import torch; print('torch', torch.__version__)"
.venv-torch-$(1)/bin/python -m pytest -n 2 $(TORCH_TESTS)
endef

torch-oldest: ## run the tests that depend on torch most, with the oldest torch that is supported
	$(call with_torch,oldest,torch==$(TORCH_OLDEST))

torch-newest: ## the same with the newest release of torch
	$(call with_torch,newest,torch)

torch-versions: torch-oldest torch-newest ## both

durations: $(STAMP) ## run the tests, and record which functions are slow in tests/durations.json
	PROXYPRUNE_DURATIONS=tests/durations.json $(BIN)/python -m pytest -n 2

check: $(STAMP) ## lint, formatting, types and spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict proxyprune
	$(BIN)/codespell

format: $(STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(STAMP) ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(STAMP) ## build wheel and sdist into dist/, and try the wheel in an empty environment (several minutes)
	$(BIN)/python scripts/check_wheel.py

local-llm: $(STAMP) ## rank with a real language model on this machine (compiles llama.cpp: about ten minutes)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[local]"
	$(BIN)/python scripts/local_llm.py

bench: $(STAMP) ## run the benchmarks that need nothing but time and Fashion-MNIST; results go to benchmarks/results/
	@set -e; for script in $(filter-out $(APART),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

zoo: $(STAMP) ## try published networks, one process each (hours; continues where it was stopped), and write the page about them
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target benchmarks/.cache/site torchvision timm
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/supported_networks.py --resume
	$(BIN)/python benchmarks/supported_networks.py --page

clean: ## remove what the other targets made, .venv included
	rm -rf $(VENV) $(wildcard .venv-torch-*) site demo-output dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
