# The README's two commands are `make rollout` and `make test`. CONTRIBUTING.md says which tests to run when.
# The first of these that is there. A pyenv shim may stand in the path for a Python that is not, so each is run.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; \
	done)
VENV ?= .venv
BIN := $(VENV)/bin

# pip resolves nothing: a lock file names every package.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(PIP) --no-deps

.PHONY: setup rollout test slow peers lint resolve reproduce mt50 quantized libero ray

setup: $(VENV)/.ready

# Where Python may not write bytecode, every process would compile torch and transformers again, which takes 6 seconds.
# compileall does it once, on all cores (pip uses one), and fails at files that packages bring for newer Pythons.
$(VENV)/.ready: requirements.lock pyproject.toml scripts/opengl.sh
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 with venv found: apt-get install python3-venv," \
		"or name one: make setup PYTHON=/usr/local/bin/python3.12" >&2; exit 2; }
	sh scripts/opengl.sh
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-compile --requirement requirements.lock
	# torch's CPU wheel is complete. For the CUDA wheel this installs the libraries that it needs.
	$(PIP) --no-compile "$$(grep ^torch== requirements.lock)"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	# Editable: `import sim_eval` finds this folder from everywhere.
	$(INSTALL) --no-build-isolation --editable .
	touch $@

rollout: setup
	$(BIN)/python -m sim_eval.rollout --policy deep_llama

# Tests run in as many processes as there are cores. Those of a file stay together, because they share fixtures.
PARALLEL := --numprocesses auto --dist loadfile
test: setup
	$(BIN)/python -m pytest $(PARALLEL)

slow: setup
	$(BIN)/python -m pytest $(PARALLEL) -m 'slow and not peers'

# What needs environments of its own, some 15 GB of them. CONTRIBUTING.md has the last results.
peers: setup
	$(BIN)/python -m pytest -m peers

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy -p sim_eval

# Do the lock and the requirements fit each Python, without a compiler? The requirements' lower ends, and beside lerobot?
# Nothing is installed.
COMPILE = $(BIN)/uv pip compile --quiet --system-certs --no-python-downloads --only-binary :all:
RESOLVE = $(COMPILE) pyproject.toml --extra robosuite --extra metaworld
resolve: setup
	for python in 3.11 3.12 3.13; do \
		$(COMPILE) --python-version $$python --no-deps requirements.lock requirements-ray.lock requirements-quantized.lock && \
		$(RESOLVE) --python-version $$python || exit; \
	done > /dev/null
	printf '%s\n' 'numpy<2' 'torch<2.8' 'transformers<5.5' | $(RESOLVE) --python-version 3.11 - > /dev/null
	echo 'lerobot>=0.6' | $(RESOLVE) --python-version 3.12 - > /dev/null

# LIBERO's tasks, --weights int8 and nf4, and --backend ray need packages of their own.
libero quantized ray: setup
	$(INSTALL) --requirement requirements-$@.lock

# One checkpoint for all tasks, from nothing (72 minutes on one core of two), and its table (half an hour more).
# EXPERT=late_gemma trains the other expert, SEED=1 gives another training.
EXPERT ?= deep_llama
SEED ?= 0
NAME = $(EXPERT)-s$(SEED)
reproduce: setup
	$(BIN)/python -m sim_eval.collect --task robosuite/LiftWide --episodes 200 --out data/lift_wide
	$(BIN)/python -m sim_eval.collect --task robosuite/Lift --episodes 50 --out data/lift
	$(BIN)/python -m sim_eval.collect --task robosuite/Stack --episodes 250 --out data/stack
	$(BIN)/python -m sim_eval.collect --task robosuite/PickPlaceCan --episodes 150 --out data/can
	$(BIN)/python -m sim_eval.train --data data/lift_wide data/lift data/stack data/can --expert $(EXPERT) --minutes 50 \
		--sampling-temperature 1.25 --threads 1 --val-episodes 10 --seed $(SEED) --out runs/train/$(NAME)
	$(BIN)/python -m sim_eval.rollout --policy runs/train/$(NAME) --video none --episodes 200 \
		--task robosuite/Lift,robosuite/LiftWide,robosuite/PickPlaceCan --out runs/$(NAME)
	$(BIN)/python -m sim_eval.rollout --policy runs/train/$(NAME) --video none --episodes 400 \
		--task robosuite/Stack --out runs/$(NAME)-stack
	$(BIN)/python -m sim_eval.rollout --policy runs/train/$(NAME) --video none --episodes 200 \
		--task robosuite/Stack --instruction-condition counterfactual --out runs/$(NAME)-stack-counterfactual
	$(BIN)/python -m sim_eval.results --trainings runs/train --runs runs --out runs/results

# Meta-World's 50 tasks from nothing: collecting (20 minutes), 95 minutes of training on one core, 500 test episodes (4).
# It takes some 25 GB of disk. docs/results.md says why it has this network, this optimizer and these Euler steps.
# EXPERT=late_gemma needs MT50_MINUTES=180.
MT50_NETWORK = --network.text.layers 3 --network.expert.layers 3 --network.vision.patch-size 16 \
	--network.position.points 4 --network.expert.euler-steps 2
MT50_MINUTES ?= 95
mt50: setup
	$(BIN)/python -m sim_eval.collect --task metaworld/MT50 --episodes 50 --cameras agentview,wrist --dry-run-first \
		--post-success-steps 25 --workers 2 --out data/mt50
	$(BIN)/python -m sim_eval.train --data data/mt50 --expert $(EXPERT) --frame-stride 2 --optimizer muon --val-episodes 1 \
		--minutes $(MT50_MINUTES) --threads 1 --seed $(SEED) $(MT50_NETWORK) --out runs/train/$(NAME)-mt50
	$(BIN)/python -m sim_eval.rollout --policy runs/train/$(NAME)-mt50 --video none --episodes 10 --workers 2 \
		--out runs/$(NAME)-mt50
