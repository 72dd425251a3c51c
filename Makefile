# Two commands for people: `make demo` and `make test`. `make check` is the fast part of the tests, `make clean` starts over.
#
# Everything is installed into .venv, once: a stamp file remembers that it was done for this pyproject.toml and this
# constraints.txt. PYTHON chooses the interpreter (3.11 or newer), DEMO the workspace of the demo, a new folder each time.

PYTHON ?= python3
VENV := .venv
DEMO ?= demo/$(shell date +%Y%m%d-%H%M%S)
# Two workers on two cores: with more, tests that watch a clock run out of patience. 0 runs everything in one process.
WORKERS ?= 2

# Without an NVIDIA card, `torch==` takes a CPU build wherever pip can see one (constraints.txt says how to show it one).
# With a card, `===` asks for exactly the plain build, the one with CUDA, even where a CPU build is at hand.
HAS_NVIDIA := $(wildcard /dev/nvidia0 /proc/driver/nvidia/version)
PIN := $(shell sed -n 's/^torch==//p' constraints.txt)
comma := ,
TORCH := $(if $(HAS_NVIDIA),torch===$(PIN),torch==$(PIN))

.PHONY: demo test test-all test-agents check format clean

demo: $(VENV)/demo.stamp
	$(VENV)/bin/autoresearch demo $(DEMO)

test: check
	$(VENV)/bin/python -m pytest -n $(WORKERS) --cov --cov-report=term-missing:skip-covered

# The whole gallery of cheats and every way to reach the tools too: a quarter of an hour.
test-all: $(VENV)/test.stamp
	GALLERY=all $(VENV)/bin/python -m pytest -n $(WORKERS) -m "slow or not slow"

# Needs Node 20 or newer. Installs five coding agents into .agents and drives them against a model server on this machine,
# two of them through MCP too.
test-agents: $(VENV)/test.stamp
	$(VENV)/bin/python tests/agents/run_clients.py --folder .agents
	$(VENV)/bin/python tests/agents/mcp_clients.py --folder .agents

check: $(VENV)/test.stamp
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/test.stamp
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

clean:
	rm -rf $(VENV) .agents build dist src/*.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,.$(if $(HAS_NVIDIA),[gpu]))
	@touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,.[$(if $(HAS_NVIDIA),gpu$(comma))test])
	@touch $@ $(VENV)/demo.stamp

# pip compiles one file after the other; compiling afterwards on all cores takes a quarter off the whole. It must be done
# here: the sandbox mounts these folders read-only. Files that are not for this Python fail to compile, and may.
define install
	@echo "installing into $(VENV), once; this takes a minute or two"
	$(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile \
		--constraint constraints.txt '$(TORCH)' --editable '$(1)'
	@$(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
endef
