# Everything happens in .venv; a target that finds its work done does nothing.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
BIN := $(VENV)/bin
DEMO ?= runs/demo
# No command here looks for a screen or reaches for the hub.
export MPLBACKEND := Agg
export HF_HUB_OFFLINE := 1

.PHONY: venv demo test slow parity lint format bench browser docs clean

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moclip_jax needs Python 3.11 or newer; name one with make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

venv: $(VENV)/.installed-dev

demo: $(VENV)/.installed
	$(BIN)/python -m moclip_jax.main --config=configs/demo.py --workdir=$(DEMO)
	$(BIN)/python -m moclip_jax.visualize --workdir=$(DEMO) --out=$(DEMO)/pictures

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

# Reads .venv's packages through a path file, so that only torch and its company are installed twice.
$(PARITY)/.installed: $(VENV)/.installed-dev requirements-parity.txt
	test -x $(PARITY)/bin/python || $(PYTHON) -m venv $(PARITY)
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > $$($(PARITY)/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	$(PARITY)/bin/pip install --quiet --disable-pip-version-check --no-deps \
	  open_clip_torch==3.3.0 timm==1.0.31 torchvision==0.28.0 'motion-vector-extractor==2.0.*'
	@$(PARITY)/bin/python -c 'import torchvision' 2> /dev/null || { \
	  echo "torchvision does not load beside this build of torch: comparisons with timm are left out," \
	    "those with tests/reference/ and the golden files are not"; \
	  $(PARITY)/bin/pip uninstall --quiet --yes torchvision; }
	touch $@

parity: $(PARITY)/.installed
	$(PARITY)/bin/python -m pytest -rA --show-capture=stdout tests/parity

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Side by side with PyTorch, timm, transformers and mv-extractor; BENCH=--quick takes three minutes.
bench: $(PARITY)/.installed
	$(BIN)/python -m benchmarks.run $(BENCH)

# The browser that the test of the page drives; where it cannot be had, that test is skipped.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif command -v apt-get >/dev/null && test "$$(id -u)" = 0 && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends chromium chromium-driver; then :; \
	else echo "no chromium here, and it cannot be installed: the test of the page is skipped"; fi

# Pages for every module, class and function; a docstring that cannot be shown is an error.
docs: $(VENV)/.installed-dev
	rm -rf build/api
	$(BIN)/python docs/build_api.py build/api

clean:
	rm -rf runs
