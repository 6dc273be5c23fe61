# Four commands do everything on a fresh machine with Python 3.11 or newer:
#   make video PROMPT="a red circle moves right on a blue background"
#   make demo
#   make lora
#   make test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PROMPT ?= a red circle moves right on a blue background
OUTPUT ?= outputs/video.mp4
SEED ?= 0
JOBS ?= 2
ROW ?= video
PORT ?= 7860
export PROMPT OUTPUT SEED

PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help setup setup-test video lora demo test lint docs bench clean

help:
	@echo 'make video PROMPT="..."   set up if needed and write $(OUTPUT); SEED=1, 2, ... for another one'
	@echo 'make lora                 set up if needed, train a LoRA of a concept in runs/lora and judge it'
	@echo 'make demo                 set up if needed and open the demo at http://127.0.0.1:$(PORT)'
	@echo 'make test                 set up if needed and run the tests'
	@echo 'make setup | setup-test   only set up, for use or for development'
	@echo 'make docs                 set up if needed and build the documentation into site/'
	@echo 'make lint | bench | clean'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "genkit needs Python 3.11 or newer; found $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.use: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing genkit and what it needs (a minute or two)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing genkit with what training needs (a minute or two)"
	@$(PIP) -e '.[train]'
	@touch $@ $(VENV)/.use

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing genkit with what the demo needs (a minute or two)"
	@$(PIP) -e '.[demo,train]'
	@touch $@ $(VENV)/.use $(VENV)/.train

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing genkit with its test tools (a minute or two)"
	@$(PIP) -e '.[demo,train,triton,test]'
	@touch $@ $(VENV)/.use $(VENV)/.train $(VENV)/.demo

$(VENV)/.docs: $(VENV)/.use
	@echo "installing what builds the documentation"
	@$(PIP) -e '.[docs]'
	@touch $@

setup: $(VENV)/.use
setup-test: $(VENV)/.test

video: $(VENV)/.use
	@mkdir -p "$$(dirname "$$OUTPUT")"
	@$(VENV)/bin/genkit generate "$$PROMPT" --seed "$$SEED" --output "$$OUTPUT" --force

lora: $(VENV)/.train
	@$(VENV)/bin/python -m benchmarks lora_concept --rows $(ROW) --steps 12 --work runs/lora --output runs/lora

demo: $(VENV)/.demo
	@$(VENV)/bin/genkit demo --port $(PORT)

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	$(VENV)/bin/python scripts/check_types.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo "open site/index.html, or: $(VENV)/bin/python -m mkdocs serve"

bench: $(VENV)/.test
	$(VENV)/bin/python -m benchmarks toy_video

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
