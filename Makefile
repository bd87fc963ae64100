# The two commands of the README are `make rollout` and `make test`; the rest are what they are made of.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup rollout test lint reproduce

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

lint: setup
	sh scripts/lint.sh $(BIN)

# From nothing to the shipped checkpoint and its table: about twenty minutes on two cores. SEED=1 gives another training.
SEED ?= 0
reproduce: setup
	$(BIN)/python -m sim_eval.collect --task robosuite/LiftWide --episodes 200 --out data/lift_wide
	$(BIN)/python -m sim_eval.collect --task robosuite/Lift --episodes 50 --out data/lift
	$(BIN)/python -m sim_eval.train --expert deep_llama --data data/lift_wide data/lift --out runs/train/seed$(SEED) \
		--minutes 10 --seed $(SEED)
	$(BIN)/python -m sim_eval.rollout --policy runs/train/seed$(SEED) --episodes 200 --video none --out runs/seed$(SEED)
	$(BIN)/python -m sim_eval.leaderboard runs/seed$(SEED)
