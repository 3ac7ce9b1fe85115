# Two commands on a fresh machine: `make demo` and `make test`. Needs Python 3.11-3.13 and a package registry.
SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
CHECKPOINT := checkpoints/smollm2-135m
RESULTS := results/demo
PRESET ?= small
# The newest Python that is supported, and what `make test-newest` runs on it: the core, checkpoints, commands, the README.
NEWEST := 3.13
NEWEST_VENV := .venv-newest
NEWEST_TESTS := project/test_readme cli/test_commands checkpoint/test_checkpoint convert/huggingface/test_roundtrip checkpoint/test_state_file model/test_llama harness/test_tasks
COMPILERS := .venv-compiled
PYTHONS ?= $(BIN)/python
# The recurrence, the policies and conversion, for every change in between.
QUICK_TESTS := model/test_extend recurrence/test_policies recurrence/test_slots convert/huggingface/test_roundtrip
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

.PHONY: demo reproduce test quick test-newest exhaustive compiled mutants check release docs torch clean
.DELETE_ON_ERROR:

demo: $(VENV)/.experiments $(CHECKPOINT)/config.json
	$(BIN)/msrnn generate $(CHECKPOINT) --chat --policy tova --budget 64 --max-new-tokens 96 \
	  --prompt "Explain in three sentences why the sea is salty."
	$(BIN)/msrnn perplexity $(CHECKPOINT) --segment 512 --segments 3 \
	  --policy full --policy window --policy window:sinks=4 --policy h2o --policy tova --policy random \
	  --budget 32 --budget 64 --budget 128 --budget 256 \
	  --out $(RESULTS)/perplexity.jsonl --plot $(RESULTS)/perplexity.png

# Every experiment of the paper, and a report on all: make reproduce DATA=path/to/data [CKPT=...] [PRESET=paper].
reproduce: $(VENV)/.experiments $(if $(CKPT),,$(CHECKPOINT)/config.json)
	@test -n "$(DATA)" || { echo "make: name the data: make reproduce DATA=path/to/data" >&2; exit 1; }
	$(BIN)/python -m experiments.reproduce "$(or $(CKPT),$(CHECKPOINT))" --data "$(DATA)" --preset "$(PRESET)"

test: $(VENV)/.test
	$(BIN)/python $(PYTEST)

# In a venv of its own, with the newest versions that pyproject.toml allows; pyenv's shim asks for PYENV_VERSION.
test-newest:
	@PYENV_VERSION=$(NEWEST) python$(NEWEST) -m venv $(NEWEST_VENV) || \
	  { echo "make: test-newest needs Python $(NEWEST), as python$(NEWEST) on PATH or as a version of pyenv" >&2; exit 1; }
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	$(NEWEST_VENV)/bin/python $(PYTEST) -m '' $(NEWEST_TESTS:%=tests/%.py)

quick: $(VENV)/.test
	$(BIN)/python $(PYTEST) $(QUICK_TESTS:%=tests/%.py)

# What is only for thoroughness, beside `make test`: whole grids, every command of the docs, processes that are killed.
exhaustive: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m exhaustive

# What the compilers of TPU and GPU make of the recurrence: both run on any machine, in an environment of their own.
compiled: $(COMPILERS)/.installed
	JAX_PLATFORMS=cpu $(COMPILERS)/bin/python $(PYTEST) --dist load tests/compiled

$(COMPILERS)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m venv $(COMPILERS)
	$(COMPILERS)/bin/python -m pip install --quiet --editable '.[test,tpu]'
	version=$$($(COMPILERS)/bin/python -c 'import jaxlib; print(jaxlib.__version__)') && \
	  $(COMPILERS)/bin/python -m pip install --quiet --no-deps "jax-cuda13-plugin==$$version" "jax-cuda13-pjrt==$$version"
	@touch $@

# How many seeded faults the tests catch, and which they do not. It takes hours, and goes on where it was stopped:
# make mutants MUTANTS="--minutes 10"; python tests/mutants.py --help names the options.
mutants: $(VENV)/.mutants
	$(BIN)/python tests/mutants.py $(MUTANTS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# What a release would publish, in build/dist: twine checks both files, and each is installed where nothing else is.
release: $(VENV)/.release
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist .
	$(BIN)/python -m twine check --strict build/dist/*
	for python in $(PYTHONS); do $$python -m venv --clear build/alone || exit 1; for file in build/dist/*; do \
	  build/alone/bin/python -m pip install --quiet --force-reinstall --no-deps $$file && \
	  build/alone/bin/python -m pip install --quiet $$file && build/alone/bin/python -m pip check && \
	  (cd build && alone/bin/msrnn --version) || exit 1; \
	done; done

# The site, in build/site: every warning is an error, and no page may load anything from the network.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --fresh-env --doctree-dir build/doctrees docs build/site
	@! grep -rnoE '(src=|<link[^>]*href=|url\()"?(https?:)?//[^"> ]*' --include='*.html' --include='*.css' build/site

# Parity tests against torch run only where it is installed; `make test` names what it skips without.
torch: $(VENV)/.torch

$(CHECKPOINT)/config.json: | $(VENV)/.experiments
	$(BIN)/python -m convert smollm2-135m $(CHECKPOINT)

$(VENV)/bin/python:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$python -c '$(SUPPORTED)' 2>/dev/null; then exec $$python -m venv $(VENV); fi; \
	done; echo "make: no Python 3.11, 3.12 or 3.13 found; name one with make PYTHON=/path/to/python" >&2; exit 1

# One stamp for each extra, renewed when the dependencies change.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) $(NEWEST_VENV) $(COMPILERS) .mutants checkpoints results build dist *.egg-info
