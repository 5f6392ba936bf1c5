# make demo · make test · make check · make bench: each does all the set-up it needs.
# A machine needs python3 (>= 3.10), make and git; as root on Debian or Ubuntu the Docker engine is installed as well.

SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Another interpreter for the server and its tools: make PYTHON=/path/to/python3
PYTHON ?= $(shell sh .ci/python.sh)
# Extra arguments: make test ARGS="-k files", make bench ARGS=..., make soak ARGS="--minutes 2",
# make races ARGS="--transfers 100000", make kills ARGS="--kills 20 --sessions-per-container 1"
ARGS ?=
STEP := sh .ci/step.sh
CONTAINER_FILES := $(shell find container -type f -not -path '*/__pycache__/*')
SOURCES := kernel_server tests benchmarks

.PHONY: help demo test check bench soak kills races fuzz setup tools engine base image clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

demo: setup  ## play the main job through the real server
	@.venv/bin/python demo/main_job.py $(ARGS)

test: setup  ## run every test against the real engine
	@sh .ci/test.sh $(ARGS)

check: tools  ## lint, format, types, import rules
	@$(STEP) ruff-check .venv/bin/ruff check .
	@$(STEP) ruff-format .venv/bin/ruff format --check .
	@$(STEP) mypy .venv/bin/mypy
	@$(STEP) lint-imports .venv/bin/lint-imports

bench: setup  ## print the ratios that the project promises
	@.venv/bin/python -m benchmarks $(ARGS)

soak: setup  ## many sessions that come and go for 15 minutes: no error, no growth
	@.venv/bin/python -m benchmarks.soak $(ARGS)

kills: setup  ## 500 kills of the server in the middle of work: no cell is lost, nothing is left
	@.venv/bin/python -m benchmarks.kills $(ARGS)

races: tools  ## transfers while a session swaps its files at full speed (needs root): nothing leaks, nothing hangs
	@PYTHONPATH=container .venv/bin/python -m benchmarks.races $(ARGS)

fuzz: tools  ## hostile bytes at everything that takes them in: ARGS="--seconds 600", guided by coverage with atheris
	@.venv/bin/python -m benchmarks.fuzz $(ARGS)

setup:  ## virtual environment, engine and image
	@$(MAKE) -j2 tools base
	@$(MAKE) image

tools: .venv/.installed  ## virtual environment only
	@:

.venv/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "No python3 >= 3.10 found. Install one, or: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(STEP) venv sh .ci/venv.sh .venv "$(PYTHON)"

engine:  ## make sure that a Docker engine answers
	@sh container/engine.sh ping || $(STEP) engine sh container/engine.sh

base: engine
	@docker image inspect "$${DOCKER_IMAGE:-python:3.13-slim}" >/dev/null 2>&1 || \
		docker image inspect "$${DOCKER_IMAGE:-kernel-server-base:trixie}" >/dev/null 2>&1 || \
		$(STEP) base sh .ci/base.sh

# The stamp holds the name of the image, since the engine may have lost it.
image: tools base  ## the image that sessions run in
	@docker image inspect "$$(cat build/image.stamp 2>/dev/null)" >/dev/null 2>&1 && $(MAKE) -q build/image.stamp || \
		{ rm -f build/image.stamp; $(MAKE) build/image.stamp; }

build/image.stamp: $(CONTAINER_FILES) .venv/.installed
	@STEP_PREFIX= $(STEP) image .venv/bin/kernel-server build
	@sed -n 's/^Ready: //p' build/log/image.log | tail -n 1 >$@

clean:  ## remove what the other targets made, except the engine and base images
	rm -rf .venv .venv-3.10 .venv-3.13 build demo-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	-@docker image ls -q --filter reference=kernel-server | sort -u | xargs -r docker image rm -f
