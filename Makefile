# The commands of the project; CI calls only these. `make run` and `make test` set everything up by themselves.
PYTHON ?= python3.11
BIN := .venv/bin
need_python = command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed, and there is no $(PYTHON): install it \
	with venv, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }

.PHONY: help setup setup-dev run play test test-all coverage test-gpu check fix docs lock image image-test bench bench-faults hostile-urls demo-weights soak train-demo-style clean

help:                ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

setup:               ## make .venv with what the worker needs, and the command .venv/bin/videogen
	@$(need_python)
	@$(PYTHON) builder/setup_venv.py

setup-dev:           ## the same, and what tests and checks need
	@$(need_python)
	@$(PYTHON) builder/setup_venv.py --dev


run: setup           ## make the video of test_input.json with the small built-in model
	@$(BIN)/python handler.py

PLAY_ARGS ?= --start "$(CURDIR)/$(BIN)/python $(CURDIR)/handler.py"

play:                ## open a page to try the worker here, or an endpoint: make play PLAY_ARGS="--endpoint ID"
	@$(need_python)
	@$(PYTHON) builder/setup_venv.py --play
	@PYTHONPATH=client/src .venv-play/bin/python -m videogen_client.page --plan "$(CURDIR)/$(BIN)/videogen" $(PLAY_ARGS)

# Two workers more than there are cores: for a third of their time tests wait for servers and processes. Worksteal gives
# each a run of neighbours, so most modules build their engine once. Bytecode is stored, whatever the shell says: without
# it every process that a test starts compiles the worker anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q -n $$(($$(nproc) + 2)) --dist worksteal

test: setup-dev      ## run the tests of a change: all but the slow ones, minutes on two cores
	@$(PYTEST) -m "not gpu and not slow"

test-all: setup-dev  ## run all tests
	@$(PYTEST)

coverage: setup-dev  ## run all tests and count the branches of worker/ that they take: not under 95%
	@$(PYTEST) --cov --cov-report=term

test-gpu: setup-dev  ## run the tests that need a GPU (Hopper: under 3 minutes)
	@$(BIN)/python -m pytest -q -n0 -m gpu tests/gpu tests/unit/engine

check: setup-dev     ## format, lint, types, import rules, generated docs, words
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/vulture
	@$(BIN)/python -m builder.schemas --check
	@$(BIN)/python -m builder.docs --check
	@$(BIN)/python -m builder.hub --check
	@$(BIN)/python -m builder.notices --check
	@$(BIN)/python -m builder.audit
	@$(BIN)/python -m builder.words

fix: setup-dev       ## format the code and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

docs: setup-dev      ## write the pages and README tables that come from the code
	@$(BIN)/python -m builder.schemas
	@$(BIN)/python -m builder.docs
	@$(BIN)/python -m builder.hub
	@$(BIN)/python -m builder.notices

lock: setup-dev      ## resolve builder/*.in into the lock files
	@$(BIN)/python -m builder.lock

image:               ## build the image with docker, podman or buildah
	@builder/image.sh $(IMAGE_ARGS)

image-test:          ## run the built image as an unprivileged user with a read-only root
	@$(need_python)
	@$(PYTHON) -m builder.try_image $(TRY_ARGS)

bench: setup-dev     ## the benchmarks that a CPU can run
	@$(BIN)/python -m benchmarks.startup
	@$(BIN)/python -m benchmarks.encode
	@$(BIN)/python -m benchmarks.encode --presets
	@$(BIN)/python -m benchmarks.encode --codecs
	@$(BIN)/python -m benchmarks.interpolate
	@$(BIN)/python -m benchmarks.marks
	@$(BIN)/python -m benchmarks.lora
	@$(BIN)/python -m benchmarks.memory
	@$(BIN)/python -m benchmarks.load
	@$(BIN)/python -m benchmarks.overhead
	@$(BIN)/python -m benchmarks.vae
	@$(BIN)/python -m benchmarks.step_cache

bench-faults: setup-dev ## the full-size fault runs of docs/reliability.md but the soak
	@$(BIN)/python -m benchmarks.webhooks --events 500
	@$(BIN)/python -m benchmarks.uploads --count 200
	@$(BIN)/python -m benchmarks.storages --seconds 300
	@$(BIN)/python -m benchmarks.shared_state --jobs 200 --workers 2 4
	@$(BIN)/python -m benchmarks.clocks
	@$(BIN)/python -m benchmarks.client --runs 300
	@$(BIN)/python -m benchmarks.router --runs 1000
	@$(BIN)/python -m benchmarks.router_kills --jobs 45 --kills 8 --stops 4
	@$(BIN)/python -m benchmarks.router_load
	@$(BIN)/python -m benchmarks.kills --times 10
	@$(BIN)/python -m benchmarks.hostile_images --count 20000
	@$(BIN)/python -m benchmarks.hostile_loras --count 10000

hostile-urls: setup-dev ## the matrix of hostile URLs in a private network namespace (needs root)
	@unshare -n sh -c "ip link set lo up && $(BIN)/python -m pytest -q tests/faults/test_hostile_urls.py"

demo-weights: setup-dev ## train the demo model anew: hours on two cores
	@$(BIN)/python -m training.train_demo

train-demo-style: setup-dev ## train a LoRA of a drawn ground for the demo model: minutes on two idle cores
	@$(BIN)/python -m training.train_look

soak: setup-dev      ## 60 minutes of mixed jobs under random faults
	@$(BIN)/python -m benchmarks.soak

clean:               ## remove what the commands made
	rm -rf .venv .venv-play .mypy_cache .ruff_cache .hypothesis outputs .state
