# The two commands of the README: `make demo` and `make test`.
PYTHON ?= python3.11
RUN := .venv/bin/python
SEED ?= 0
export PYTHON
# A sourced ROS 2 workspace has packages of another Python, and settings that are not this environment's.
unexport PYTHONPATH AMENT_PREFIX_PATH LD_LIBRARY_PATH RMW_IMPLEMENTATION ROS_LOCALHOST_ONLY ROS_DISTRO

.PHONY: help setup demo base test lint clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup:  ## make .venv from the pinned requirements and build the workspace with colcon
	@scripts/setup.sh

demo: setup  ## record, train, merge, run and score in simulation (SMOKE=1: three minutes, tiny numbers; SEED=n)
	@$(RUN) -m crane_x7_bringup.demo --seed $(SEED) $(if $(SMOKE),--smoke)

base: setup  ## train the pretrained base that the demo fine-tunes (about half an hour on two cores)
	@$(RUN) -m crane_x7_bringup.base

lint: setup  ## ruff and pyright
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m pyright

test: lint  ## set up, lint, then every test
	@$(RUN) -m pytest

clean:  ## remove what setup, tests and the demo made; recorded data and outputs stay
	rm -rf .venv build install log .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf src/*/*.egg-info
