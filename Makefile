# The two commands of the README are `make rollout` and `make test`; the rest are what they are made of.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup rollout test lint reproduce mt50 quantized libero

setup: $(VENV)/.ready

# The lock holds every package, so nothing is resolved here, and robosuite's pynput (which needs a compiler) stays out.
$(VENV)/.ready: requirements.lock scripts/opengl.sh
	sh scripts/opengl.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement requirements.lock
	# torch's CPU wheel is complete; for its CUDA wheel this fetches the libraries that it names.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep ^torch== requirements.lock)"
	touch $@

rollout: setup
	$(BIN)/python -m sim_eval.rollout --policy deep_llama

test: setup
	$(BIN)/python -m pytest

# What --weights int8 and nf4 need; see requirements-quantized.lock.
quantized: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-quantized.lock

# LIBERO's tasks, which are listed once this has run; see requirements-libero.lock.
libero: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
		--requirement requirements-libero.lock

lint: setup
	sh scripts/lint.sh $(BIN)

# From nothing to one checkpoint for all tasks (72 minutes on one core of two) and its table (half an hour more).
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
		--balance 0.2 --threads 1 --val-episodes 10 --seed $(SEED) --out runs/train/$(NAME)
	$(BIN)/python -m sim_eval.rollout --policy runs/train/$(NAME) --video none --episodes 200 \
		--task robosuite/Lift,robosuite/LiftWide,robosuite/PickPlaceCan --out runs/$(NAME)
	$(BIN)/python -m sim_eval.rollout --policy runs/train/$(NAME) --video none --episodes 400 \
		--task robosuite/Stack --out runs/$(NAME)-stack
	$(BIN)/python -m sim_eval.rollout --policy runs/train/$(NAME) --video none --episodes 200 \
		--task robosuite/Stack --instruction-condition counterfactual --out runs/$(NAME)-stack-wrong
	$(BIN)/python -m sim_eval.results --trainings runs/train --runs runs --out runs/results

# Meta-World's 50 tasks from nothing: collecting (20 minutes), packing (7), 95 minutes of training on one core, 500 test
# episodes (4). It takes 45 GB of disk. docs/results.md says why this network, this optimizer and these Euler steps.
# EXPERT=late_gemma wants MT50_MINUTES=180.
MT50_NETWORK = text.layers=3 expert.layers=3 vision.patch_size=16 position.points=4 expert.euler_steps=2
MT50_MINUTES ?= 95
mt50: setup
	$(BIN)/python -m sim_eval.collect --task metaworld/MT50 --episodes 50 --cameras agentview,wrist --dry-run-first --post-success-steps 25 \
		--workers 2 --out data/mt50
	$(BIN)/python -m sim_eval.train --data data/mt50 --expert $(EXPERT) --frame-stride 2 --optimizer muon --val-episodes 1 \
		--minutes $(MT50_MINUTES) --threads 1 --workers 2 --seed $(SEED) --set $(MT50_NETWORK) --out runs/train/$(NAME)-mt50
	$(BIN)/python -m sim_eval.rollout --policy runs/train/$(NAME)-mt50 --video none --episodes 10 --workers 2 \
		--out runs/$(NAME)-mt50
