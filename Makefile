# `make repro` and `make test` set everything up by themselves.
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
export DVC_NO_ANALYTICS := 1
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

PYTHON ?= python3
BIN := .venv/bin
# Stages run as `python -m ...`: dvc takes it from PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro serve test test-all lint lock pictures

repro: .venv/ready
	tnt check
	dvc repro
	tnt summary

serve: .venv/ready
	python -m flows.serve --worker

TESTS := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 pytest -q --numprocesses 2 --dist worksteal

test: .venv/ready
	$(TESTS) -m "not slow"

# Those with real servers, browsers and kills too: what `.ci/run` runs.
test-all: .venv/ready
	$(TESTS)

# What the README shows, of the report that is in data/report/.
pictures: | docs/pictures
	cp data/report/pictures/tradeoff-replies-*.svg data/report/pictures/flags-replies-*.svg docs/pictures/

docs/pictures:
	mkdir -p $@

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy

# The tested environment, written out; torch first, so that no other package picks its build.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

lock: .venv/ready
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt
