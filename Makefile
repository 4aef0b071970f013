# Every target sets up what it needs in ./.venv and may be run again.
#
#   make serve            install the service, start it with the shipped model (ARGS="--http-port 9000")
#   make test             install everything for development, run the tests (TESTS=tests/model to choose)
#   make check            static: format, lint, types, layers
#   make soak             the long and the destructive tests
#   make bench            what this machine does with the shipped model
#   make images           build the container images
#   make compose-test     build them, bring docker-compose.yml up and see that it works, for real
#   make train-camvid     train the shipped model again (CAMVID=/path/to/camvid)

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
TESTS  ?= tests
CAMVID ?= $(BISENET_DATA_ROOT)/camvid

BIN := $(VENV)/bin
PIP  = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt
SETUP := pyproject.toml constraints.txt

.PHONY: serve test check format soak bench images compose-test train-camvid clean

serve: $(VENV)/.installed-base
	@$(BIN)/bisenet serve $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not soak" $(TESTS)

soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak $(TESTS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev
	$(BIN)/bisenet bench engine --engine openvino --precision f32 --precision bf16 --engine torch --peer benchmark_app $(ARGS)

images:
	docker/check.sh images

compose-test:
	docker/check.sh compose

train-camvid: $(VENV)/.installed-dev
	$(BIN)/bisenet train camvid-v2 --set data.root="$(CAMVID)" --out runs/camvid-v2 --resume $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	@echo "creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-base: $(SETUP) | $(VENV)/bin/python
	@echo "installing the service into $(VENV) (no torch)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(SETUP) | $(VENV)/bin/python
	@echo "installing the service, torch and the development tools into $(VENV)"
	@$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed-base
