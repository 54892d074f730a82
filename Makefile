# Everything a person types. `make run` and `make test` set up what they need first.
PYTHON ?= python3
PIP := .venv/bin/pip --disable-pip-version-check
RUN ?= toy
STORE ?= $(HOME)/.local/share/m1/store

.PHONY: help setup run test check faults bench up down clean

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: .venv/.runtime  ## virtual environment with pinned versions; leaves .venv/bin/m1

# torch comes first and pinned: asked for by another package it would bring the newest CUDA build.
# On a machine with a GPU: make setup TORCH="torch==2.13.0 --index-url <the CUDA index of your choice>"
TORCH ?= torch==2.13.0
.venv/.runtime: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --no-compile $(TORCH)
	$(PIP) install --quiet --no-compile -c constraints.txt -e .
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m compileall -q -j 0 .venv/lib || true
	touch $@

.venv/.test: .venv/.runtime
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[test]'
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m compileall -q -j 0 .venv/lib || true
	touch $@

run: setup  ## the whole pipeline at toy scale: raw text to a reasoning model
	.venv/bin/m1 run --preset toy --run $(RUN) --store $(STORE)

test: .venv/.test  ## all tests
	.venv/bin/pytest -n auto --dist loadfile

faults: .venv/.test  ## every fault of the table, with a dated report; LONG=1 is the night's form
	M1_FAULTS_SCALE=$(if $(LONG),20,1) .venv/bin/python benchmarks/faults.py

bench: .venv/.test  ## what can be measured; NAME=learning measures one
	.venv/bin/m1 bench $(NAME)

up: setup  ## dashboard, worker and deployments on this machine
	.venv/bin/m1 up

down: setup  ## end what `make up` started
	.venv/bin/m1 down

check: .venv/.test  ## format, lint, types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	mkdir -p build/typing/m1
	for room in flows stages model data_recipes infra; do ln -sfn ../../../$$room build/typing/m1/$$room; done
	.venv/bin/mypy -p m1.infra -p m1.data_recipes -p m1.model -p m1.stages -p m1.flows

clean:  ## forget the virtual environment and build products
	rm -rf .venv build *.egg-info
