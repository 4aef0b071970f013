# Every target sets up what it needs in ./.venv and may be run again.
#
#   make serve            install the service, start it with the shipped model (ARGS="--http-port 9000")
#   make test             install everything for development, run the tests (TESTS=tests/model to choose)
#   make check            static: format, lint, types, layers
#   make soak             the long and the destructive tests
#   make guarantees       the tests of docs/reference/guarantees.md, with their results and the date written there
#   make clients          clients of Triton, KServe, Hugging Face and OpenAPI, each with its own packages (ARGS=FOLDER)
#   make browser          the page in a real browser (needs Debian's chromium)
#   make fuzz             decode N mutated pictures (N=1000000)
#   make bench            what this machine does with the shipped model
#   make proto            write service/wire from proto/
#   make reference        write docs/reference from the code: every setting, error code, metric, public name and guarantee
#   make dashboards       write docker/grafana/dashboards from .ci/generate_dashboards.py
#   make examples         run the programs and the notebook of examples
#   make docs             build the documentation into build/site
#   make images           build the container images
#   make sbom             list what is in the image bisenet:cpu, as build/sbom.spdx.json
#   make checkov          look for weak spots in the rendered manifests and the Dockerfile
#   make image-targets    build the images for GPUs and training as well, and start each (TORCH_INDEX as for test)
#   make compose-test     build the image, bring the service up, then the whole stack; kill its containers, fill its
#                         disks, cut its network, and see that nothing is lost (root; images or stand-ins of them)
#   make train-camvid     train a longer model than the shipped one, for a machine with a GPU, and put it in the
#                         place of all shipped versions (CAMVID=/path/to/camvid WEIGHTS=efficientnet-lite0-57934424.pth)
#   make quantize-camvid  make the int8 version of the shipped model again (CAMVID=/path/to/camvid)

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
TESTS  ?= tests
N      ?= 1000000
CAMVID ?= $(BISENET_DATA_ROOT)/camvid
# The index of torch's builds for CPUs: 0.2 GB instead of several with CUDA. Empty: take the default build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
PIP  = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt
SETUP := pyproject.toml constraints.txt

.PHONY: serve test check format soak guarantees clients browser fuzz bench proto reference dashboards examples docs images sbom \
	checkov compose-test image-targets train-camvid quantize-camvid clean

serve: $(VENV)/.installed-base
	@$(BIN)/bisenet serve $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not soak and not browser and not clients and not compose" -n 2 --max-worker-restart 0 --dist loadfile -o faulthandler_timeout=240 $(TESTS)

soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak $(TESTS)

guarantees: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m pytest -p guarantees -m guarantee $(TESTS) $(ARGS) || [ $$? = 1 ]
	$(MAKE) reference

# Their protobuf is older than the service's, and they want versions of it that differ.
build/clients/triton/.installed: CLIENT = tritonclient[http,grpc]>=2.73,<3
build/clients/kserve/.installed: CLIENT = kserve>=0.21,<0.22

build/clients/%/.installed:
	$(PYTHON) -m venv build/clients/$*
	build/clients/$*/bin/python -m pip install --disable-pip-version-check --progress-bar off -q "$(CLIENT)"
	@touch $@

browser: $(VENV)/.installed-dev
	$(PIP) -e ".[browser]"
	$(BIN)/python -m pytest -m browser tests/page

clients: $(VENV)/.installed-dev build/clients/triton/.installed build/clients/kserve/.installed
	$(BIN)/python tests/clients/run_clients.py $(ARGS)
	$(if $(ARGS),,$(BIN)/python -m pytest -m clients tests/clients)

fuzz: $(VENV)/.installed-dev
	PYTHONPATH=. $(BIN)/python tests/fuzz_image.py $(N)

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

proto: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python .ci/generate_wire.py .

reference: $(VENV)/.installed-dev
	PYTHONPATH=. $(BIN)/python .ci/generate_reference.py

dashboards: $(VENV)/.installed-dev
	$(BIN)/python .ci/generate_dashboards.py

examples: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "soak or not soak" tests/examples

docs: reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

images:
	docker/check.sh images

sbom:
	docker/check.sh sbom

# In an environment of its own: it wants other versions of much.
checkov: | $(VENV)/bin/python
	[ -x build/checkov/bin/checkov ] || $(PYTHON) -m venv build/checkov
	build/checkov/bin/pip install --disable-pip-version-check -q checkov==3.3.30
	mkdir -p build/manifests
	for folder in overlays/cpu overlays/gpu overlays/scale train; \
		do kubectl kustomize k8s/$$folder >build/manifests/$$(basename $$folder).yaml || exit 1; done
	build/checkov/bin/checkov --config-file .checkov.yaml -d build/manifests -d docker

compose-test: $(VENV)/.installed-dev
	PROGRAMS=$(BIN) docker/check.sh compose

image-targets:
	docker/check.sh targets

train-camvid: $(VENV)/.installed-dev
	$(BIN)/python .ci/train_camvid.py "$(CAMVID)" "$(WEIGHTS)" $(ARGS)

quantize-camvid: $(VENV)/.installed-dev
	rm -rf runs/camvid-int8
	$(BIN)/bisenet models quantize camvid@1 --dataset camvid --root "$(CAMVID)" --out runs/camvid-int8 $(ARGS)
	rm -rf model/shipped/camvid/2
	mv runs/camvid-int8 model/shipped/camvid/2

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
	@if [ -n "$(TORCH_INDEX)" ] && ! command -v nvidia-smi >/dev/null; then \
		$(PIP) --no-deps --timeout 10 --retries 0 --index-url "$(TORCH_INDEX)" torch \
		|| echo "$(TORCH_INDEX) does not answer: torch comes with CUDA, several GB (another index: TORCH_INDEX=URL)"; \
	fi
	@$(PIP) -e ".[dev]"
	@# An oracle of the tests; of what it asks for (matplotlib, an obsolete typing, ...) its evaluator needs this.
	@$(PIP) --no-deps cityscapesscripts pyquaternion
	@touch $@ $(VENV)/.installed-base
