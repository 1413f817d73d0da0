# `make` lists the verbs. Settings, given on the command line:
#   VENV=0          run PYTHON with what it has: nothing is installed, no network is used
#   PYTHON=python3  the Python to run, or to make .venv with
#   ARGS="..."      passed on to the command behind the verb, such as `dlm bench`
VENV = .venv
PYTHON = python3
ARGS =

ifeq ($(VENV),0)
run = PYTHONPATH="$(CURDIR)/kernels:$(CURDIR)/bench:$(CURDIR)/roofline:$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON)
needs =
else
run = $(VENV)/bin/python
needs = $(VENV)/.installed-$(1)
endif

.PHONY: help setup test test-full gpu-check lint bench train quality roofline report readme clean

help: ## List these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(call needs,test) $(call needs,lint) ## Make .venv and install everything that test, lint and bench need

# A kernel that was imported for the interpreter can't be compiled, so the compile gate is a run of
# its own. A worker a core: four at most where they share a GPU, sixteen where they share memory.
test: ## Run the tests: kernels on the GPU if there is one, else in Triton's interpreter
test-full: ## The same with every shape, prompt and architecture
test-full: full = --full
test test-full: pytest = OMP_NUM_THREADS=1 $(run) -m pytest -n logical --dist worksteal --timeout 300
test test-full: $(call needs,test)
	@set -- $$($(run) -c 'import torch; print(*(0, 4) if torch.cuda.is_available() else (1, 16))'); \
	[ $$# = 2 ] || exit 1; \
	status=0; \
	TRITON_INTERPRET=$$1 $(pytest) --maxprocesses $$2 $(full) --ignore tests/compile_gate tests || status=1; \
	TRITON_INTERPRET=0 $(pytest) --maxprocesses $$2 $(full) tests/compile_gate || status=1; \
	exit $$status

gpu-check: $(call needs,test) ## Run tests and compute-sanitizer on the GPU; goes on where it was cut short
	@$(run) tests/gpu_check.py

lint: $(call needs,lint) ## Check style and formatting with ruff
	$(run) -m ruff check .
	$(run) -m ruff format --check .

bench: $(call needs,bench) ## Measure ceilings, ops and forwards on this machine's device, into out/
	@$(run) -m dlm_core.cli bench $(ARGS)

train: $(call needs,bench) ## Train the small model, into out/train/; goes on where it was interrupted
	@$(run) -m dlm_core.cli train $(ARGS)

quality: $(call needs,bench) ## Measure quality beside speed over modes, rules and settings, into out/quality/
	@$(run) -m dlm_core.cli quality $(ARGS)

roofline: $(call needs,bench) ## Draw the pictures of records, and say how far predictions are from them
	@$(run) -m dlm_core.cli roofline $(ARGS)

report: $(call needs,bench) ## Write records, pictures and a block being denoised as one HTML file
	@$(run) -m dlm_core.cli report $(ARGS)

readme: $(call needs,bench) ## Rewrite README's tables from the records in bench/results/
	@$(run) -m dlm_bench.readme

clean: ## Remove .venv, caches and build leftovers; out/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted install is taken up again.
$(VENV)/.installed-%: pyproject.toml .ci/constraints.txt | $(VENV)/bin/pip
	@echo "Installing what 'make $*' needs into $(VENV) (the first time takes minutes)"
	@$(VENV)/bin/python -m pip install -qq --constraint .ci/constraints.txt --editable '.[$*]'
	@touch $@

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) is missing, or lacks venv and ensurepip (Debian: the package python3-venv)." >&2; \
	  echo "A Python that has torch, pytest-xdist and pytest-timeout needs neither: make test VENV=0" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)
