# `make help` explains every target. Nothing but git, make, Python 3.11+ and a package index is needed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install lock lock-check lint format types layers tables tables-check test test-slow test-all \
        build demo check-demo docs pages bench measure same fuzz audit clean

comma := ,
empty :=
space := $(empty) $(empty)
# uv does not read pip's folders of local wheels (a CPU build of torch, say), so they are passed on.
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
# Threads that wait for each other sleep: on a busy machine spinning costs more than the work.
export OMP_WAIT_POLICY ?= PASSIVE
# PROFILE=full trains the full model on the full data; sample on what is built in.
PROFILE ?= sample
$(if $(filter-out sample full,$(PROFILE)),$(error PROFILE=$(PROFILE) is neither sample nor full))
PYTHON ?= python3
UV ?= $(or $(shell command -v uv),.uv/bin/uv)
RUN := $(UV) run
# The members of the workspace; a package that is in work is not among them.
PACKAGES := $(shell sed -n 's/^members = .*/&/p' pyproject.toml | grep -o 'packages/[a-z0-9_]*' | sed 's,packages/,,')

help: ## Show this list
	@echo "Latent Text Lab. Targets:"
	@grep -hE '^[a-z][a-z0-9_%-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' \
	  | awk -F'\t' '{printf "  %-16s %s\n", $$1, $$2}'
	@echo "Variables: PROFILE=sample|full (train, eval), UV (path of uv), PIP_FIND_LINKS (folder of local wheels)."

.uv/bin/uv:
	@echo "uv is missing: installing it into .uv/"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 8))' \
	  || { echo "error: $(PYTHON) is too old. Give another: make PYTHON=python3.11 ..."; exit 2; }
	@if $(PYTHON) -m venv .uv; then .uv/bin/python -m pip install --quiet uv; \
	 else $(PYTHON) -m pip install --quiet --target .uv/lib uv && mkdir -p .uv/bin && ln -sf ../lib/bin/uv .uv/bin/uv; fi

install: $(filter .uv/bin/uv,$(UV)) ## Set up .venv with every package and the developers' tools
	$(UV) sync $(if $(wildcard .venv),--quiet)

lock: install ## Resolve anew: write uv.lock (generated) and requirements.lock (committed)
	$(RUN) python scripts/lock.py --uv "$$(command -v $(UV))"

lock-check: install ## Fail if requirements.lock is not what pyproject.toml resolves to
	$(RUN) python scripts/lock.py --check --uv "$$(command -v $(UV))"

lint: install ## Check style
	$(RUN) ruff check .
	$(RUN) ruff format --check .

format: install ## Mend style
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

types: install ## Check types (mypy, strict)
	$(RUN) mypy shared/src $(PACKAGES:%=packages/%/src) scripts

layers: install ## Check that imports run one way, as CONTRIBUTING.md draws them
	$(RUN) lint-imports

tables: install ## Write the README tables and docs/scale.md from results/*.json
	$(RUN) python scripts/results_table.py
	$(RUN) python scripts/scale.py

tables-check: install ## Fail if a README table differs from its results file
	$(RUN) python scripts/results_table.py --check
	$(RUN) python scripts/scale.py --check
	$(RUN) python scripts/site_pages.py --check

# As many parts run at a time as there are cores; the longest begin.
LONGEST := packages/seq2seq_keras packages/nrms tests
PARTS := $(LONGEST) $(filter-out $(LONGEST),$(PACKAGES:%=packages/%)) shared
test: install ## Run the quick tests, a process per package, side by side (under 10 minutes on 2 cores)
	$(RUN) python scripts/run_tests.py $(PARTS)

MARKED ?= slow
test-slow: install ## Run only the slow tests: fresh clones, clean installs, wheels, killed processes, servers under load
	$(RUN) python scripts/run_tests.py -m "$(MARKED)" $(PARTS)

test-all: test test-slow ## Run every test

test-%: install ## Run the quick tests of one package, such as test-rsr_net
	$(RUN) pytest -q packages/$*

build: install ## Build the wheels and sdists of all packages into dist/
	$(UV) build --quiet --all-packages --out-dir dist

docs: install ## Build the documentation site into site/; it loads nothing from elsewhere
	$(RUN) python scripts/site_pages.py
	NO_MKDOCS_2_WARNING=1 $(RUN) --group docs mkdocs build --strict --quiet

pages: install ## Write the picture of the layers and the list of commands from the code
	$(RUN) python scripts/site_pages.py

check-demo: install ## Check what `make demo` wrote: run folders alike, model cards, the page; and run the tutorials on it
	@[ -f "$${LATENTLAB_DEMO:-runs/demo}/results.json" ] || { echo "error: there is no demo to check. Run: make demo"; exit 2; }
	$(RUN) pytest -q -m demo tests

MINUTES ?= 5
fuzz: install ## Damaged files for every reader, MINUTES=5 each; READER=nrms for those whose name begins so
	$(RUN) python tests/fuzz.py --seconds $$(( $(MINUTES) * 60 )) --reader "$(READER)"

audit: install ## Look the locked versions up in the list of known faults; needs a network
	$(RUN) --group audit python scripts/audit.py

demo: install ## Run the main job of every system on built-in samples; writes runs/demo/index.html
	$(RUN) python scripts/demo.py

bench: install ## Run every benchmark (hours): runs/bench/results.json and index.html; DATA=DIR, ARGS="--only help" for one
	$(RUN) python scripts/bench.py $(if $(DATA),--data "$(DATA)") $(ARGS)

measure: install ## Measure every table of every README again (hours, resumable): DATA=DIR; ARGS="--list" says what is done
	$(RUN) python scripts/measure.py $(if $(DATA),--data "$(DATA)") $(ARGS)

same: install ## Compare short runs with those at REV: where the bits agree, what `make measure` found there still stands
	$(RUN) python scripts/same.py --rev "$(REV)" $(ARGS)

train-rsr: install ## Train rsr_net (PROFILE=sample: under a minute; PROFILE=full: CNN/DailyMail and BART-base)
	$(RUN) rsr-net train --profile $(PROFILE) $(ARGS)

eval-rsr: install ## Evaluate the model that train-rsr wrote
	$(RUN) rsr-net evaluate --model runs/rsr_net/$(PROFILE) $(ARGS)

serve-rsr: install ## Serve the model that train-rsr wrote, with its page, on loopback
	$(RUN) rsr-net serve --model runs/rsr_net/$(PROFILE) $(ARGS)

NRMS_DATA := $(if $(filter full,$(PROFILE)),--data data/mind-small)
train-nrms: install ## Train nrms (PROFILE=sample: under two minutes; PROFILE=full: MIND-small)
	$(if $(NRMS_DATA),$(RUN) nrms prepare --source MINDsmall --output-dir data/mind-small)
	$(RUN) nrms train --profile $(PROFILE) $(NRMS_DATA) --output-dir runs/nrms/$(PROFILE) \
	  $(if $(NRMS_DATA),,--overwrite) $(ARGS)

eval-nrms: install ## Evaluate the model that train-nrms wrote
	$(RUN) nrms evaluate --model runs/nrms/$(PROFILE) $(NRMS_DATA) $(ARGS)

serve-nrms: install ## Serve the model that train-nrms wrote, with its page, on loopback
	$(RUN) nrms serve --model runs/nrms/$(PROFILE) $(ARGS)

SEQ2SEQ_PRESET := $(if $(filter full,$(PROFILE)),full,small)
train-seq2seq: install ## Train seq2seq_keras (PROFILE=sample: minutes; PROFILE=full: the seed's sizes, hours)
	$(RUN) seq2seq-keras train --preset $(SEQ2SEQ_PRESET) --output-dir runs/seq2seq_keras/$(SEQ2SEQ_PRESET) \
	  $(if $(filter full,$(PROFILE)),,--overwrite) $(ARGS)

eval-seq2seq: install ## Evaluate the model that train-seq2seq wrote
	$(RUN) seq2seq-keras evaluate --model runs/seq2seq_keras/$(SEQ2SEQ_PRESET) $(ARGS)

serve-seq2seq: install ## Serve the model that train-seq2seq wrote, with its page, on loopback
	$(RUN) seq2seq-keras serve --model runs/seq2seq_keras/$(SEQ2SEQ_PRESET) $(ARGS)

CLARA_FULL := $(filter full,$(PROFILE))
train-clara: install ## Train clara_absa (PROFILE=sample: about two minutes; PROFILE=full: MAMS, with MiniLM)
	$(if $(CLARA_FULL),$(RUN) clara-absa prepare --output-dir data/raw)
	$(RUN) clara-absa train --profile $(if $(CLARA_FULL),light --data data/raw,$(PROFILE)) \
	  --output-dir runs/clara_absa/$(PROFILE) $(if $(CLARA_FULL),,--overwrite) $(ARGS)

eval-clara: install ## Evaluate the model that train-clara wrote
	$(RUN) clara-absa evaluate --model runs/clara_absa/$(PROFILE) $(ARGS)

serve-clara: install ## Serve the model that train-clara wrote, with its page, on loopback
	$(RUN) clara-absa serve --model runs/clara_absa/$(PROFILE) $(ARGS)

REFRAG_DATA := $(if $(filter full,$(PROFILE)),data/refrag)
REFRAG_RUN := $(if $(REFRAG_DATA),full,questions)
train-refrag: install ## Train refrag (PROFILE=sample: about two minutes; PROFILE=full: prepared questions)
	$(if $(REFRAG_DATA),$(RUN) refrag prepare --output-dir $(REFRAG_DATA))
	$(RUN) refrag train --output-dir runs/refrag/$(REFRAG_RUN) \
	  $(if $(REFRAG_DATA),--data $(REFRAG_DATA)/questions_train.jsonl.gz,--overwrite) $(ARGS)

eval-refrag: install ## Evaluate the model that train-refrag wrote
	$(RUN) refrag evaluate --model runs/refrag/$(REFRAG_RUN) \
	  $(if $(REFRAG_DATA),--data $(REFRAG_DATA)/questions_valid.jsonl.gz) $(ARGS)

serve-refrag: install ## Serve the model that train-refrag wrote, with its page, on loopback
	$(RUN) refrag serve --model runs/refrag/$(REFRAG_RUN) $(ARGS)

clean: ## Remove everything that is generated (runs/ stays)
	rm -rf .venv .uv uv.lock dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache site
