# Everything happens in .venv; a target that finds its work done does nothing.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
BEAM := .venv-beam
ONNX := .venv-onnx
BIN := $(VENV)/bin
DEMO ?= runs/demo
# No command here looks for a screen or reaches for the hub.
export MPLBACKEND := Agg
export HF_HUB_OFFLINE := 1

# Processes that share the tests: one more than cores, as some wait for time limits and other processes.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest
SHARED_PYTEST := $(PYTEST) -n $(WORKERS) --dist worksteal

.PHONY: venv demo test test-fast slow reliability parity beam onnx lint format bench gpu-check browser docs clean

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
	$(BIN)/python -m moclip_jax.visualize --workdir=$(DEMO) --out=$(DEMO)/figures

test: $(VENV)/.installed-dev
	$(SHARED_PYTEST)

# Without the tests that take a finished run or are in tests/long_tests.txt.
test-fast: $(VENV)/.installed-dev
	$(SHARED_PYTEST) -m 'not slow and not run'

slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

# Two processes, SIGTERM and three kills, from the slow tests.
reliability: $(VENV)/.installed-dev
	MOCLIP_KILLS=3 $(PYTEST) -m ci --durations=0

# An environment of its own that finds .venv's packages too, the editable install included.
define SHARE_PACKAGES
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	  > $$($(1)/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth
endef

$(BEAM)/.installed: $(VENV)/.installed-dev requirements-beam.txt
	$(call SHARE_PACKAGES,$(BEAM))
	$(BEAM)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-beam.txt
	touch $@

beam: $(BEAM)/.installed
	$(BEAM)/bin/python -m pytest -k beam tests/input_pipeline/datasets

# The converter asks for an older orbax-checkpoint, which it does not use.
$(ONNX)/.installed: $(VENV)/.installed-dev requirements-onnx.txt
	$(call SHARE_PACKAGES,$(ONNX))
	$(ONNX)/bin/pip install --quiet --disable-pip-version-check -r requirements-onnx.txt
	$(ONNX)/bin/pip install --quiet --disable-pip-version-check --no-deps jax2onnx==0.17.1
	touch $@

onnx: $(ONNX)/.installed
	$(ONNX)/bin/python -m pytest -m 'slow or not slow' tests/export/test_onnx.py

$(PARITY)/.installed: $(VENV)/.installed-dev requirements-parity.txt
	$(call SHARE_PACKAGES,$(PARITY))
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

# mypy reads the packages under the names of an install.
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	rm -rf build/types
	mkdir -p build/types/moclip_jax
	ln -s $(CURDIR)/moclip_jax/* $(CURDIR)/configs $(CURDIR)/input_pipeline build/types/moclip_jax
	MYPYPATH=build/types $(BIN)/mypy -p moclip_jax

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Side by side with PyTorch, timm, transformers and mv-extractor; BENCH=--quick takes three minutes.
bench: $(PARITY)/.installed
	$(BIN)/python -m benchmarks.run $(BENCH)

# What an accelerator can change, beside PyTorch on the same card; CHECK=--quick does a little of each part.
gpu-check: $(PARITY)/.installed
	$(BIN)/python -m benchmarks.gpu_check $(CHECK)

# The browser that the test of the page drives; where it cannot be had, that test is skipped.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif command -v apt-get >/dev/null && test "$$(id -u)" = 0 && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends chromium chromium-driver; then :; \
	else echo "no chromium here, and it cannot be installed: the test of the page is skipped"; fi

# Pages for every module, class and function; a docstring that cannot be shown is an error.
docs: $(VENV)/.installed-dev
	$(BIN)/python docs/build_api.py build/api

clean:
	rm -rf runs build
