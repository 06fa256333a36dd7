# make demo, make test and the rest each do all their own set-up first.
PYTHON ?= python3
PREFIX ?= /opt/hpcimg
DESTDIR ?=
BIN := .venv/bin

.PHONY: help demo test test-kill lint bench install clean
help:
	@echo "make demo       a throwaway Slurm, a registry, real jobs: see it work (two minutes)"
	@echo "make test       all tests"
	@echo "make test-kill  a thousand rounds of kill -9 at a random moment"
	@echo "make lint       ruff, mypy, shellcheck"
	@echo "make bench      time the warm hit and the cold ways"
	@echo "make install    install to PREFIX ($(PREFIX)), below DESTDIR if set"

# The virtual environment, made anew when its ingredients change.
.venv/ready: setup.cfg tests/install-packages
	tests/install-packages
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpcimg needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	$(BIN)/python -m compileall -q hpcimg
	touch $@

demo: .venv/ready
	$(BIN)/python -m tests.demo

test: .venv/ready
	$(BIN)/python -m pytest

test-kill: .venv/ready
	HPCIMG_KILL_ROUNDS=1000 $(BIN)/python -m pytest --timeout=0 tests/faults/test_kill.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck prolog/* epilog/* tests/install-packages tests/parts/*.sh .ci/run

bench: .venv/ready
	$(BIN)/python -m bench.warm_hit

clean:
	rm -rf .venv build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
