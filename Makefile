# CodeParrot on Kubernetes. `make run` and `make test` do all the set-up; `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CONFIG ?= recipes/tiny.yaml
STAGE ?= pipeline
ONLY ?=
IMAGE ?= codeparrot:dev
JOBS ?= 3
FAULTS ?= faults
# Plain pip and uv settings that some machines export would make every start slower: bytecode is compiled once.
export PYTHONDONTWRITEBYTECODE :=
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE ?= 1

.PHONY: help run study sweep test faults chaos unit bench lint fmt lock schema clean store image chart e2e cluster-up cluster-down

##@ Use
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.run ## Everything, from source code to a trained model and its report (CONFIG=recipe STAGE=stage ARGS=...)
	@$(PY) -m ray_jobs.local $(STAGE) --config $(CONFIG) $(ARGS)

study: $(VENV)/.run ## Two models on two corpora, web frameworks and scientific packages, and what tells them apart
	@$(PY) -m ray_jobs.local pipeline --config recipes/study-web.yaml
	@$(PY) -m ray_jobs.local pipeline --config recipes/study-scientific.yaml
	@$(PY) -m ray_jobs.local compare recipes/study-web.yaml recipes/study-scientific.yaml $(ARGS)

sweep: $(VENV)/.run ## The runs of a study, resumable, and their page (CONFIG=study ARGS=--dry-run)
	@$(PY) -m ray_jobs.local sweep --config $(or $(filter-out recipes/tiny.yaml,$(CONFIG)),recipes/study-scaling.yaml) $(ARGS)

store: $(VENV)/.run ## The embedded object store alone, in the foreground
	@$(PY) -m codeparrot.local_store

clean: ## Stop what the project started and remove what it made (not the virtual environment)
	@if [ -x $(PY) ]; then $(PY) -m ray_jobs.clean; fi
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

##@ On Kubernetes
image: $(VENV)/.sbom ## Build the image, and its bill of materials in dist/ (IMAGE=name:tag BASE_IMAGE=image-with-python ENVIRONMENT_IMAGE=image-with-/opt/venv)
	@$(if $(ENGINE),,$(error docker, podman or buildah is needed to build an image))
	@$(ENGINE) build $(DOCKER_BUILD_FLAGS) --tag $(IMAGE) \
		$(if $(BASE_IMAGE),--build-arg BASE=$(BASE_IMAGE)) \
		$(if $(ENVIRONMENT_IMAGE),--build-arg ENVIRONMENT=$(ENVIRONMENT_IMAGE)) \
		--build-arg VERSION=$(lastword $(subst :, ,$(IMAGE))) --build-arg REVISION=$$(git rev-parse HEAD) .
	@mkdir -p dist
	@$(VENV)/sbom/bin/python -W ignore -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
		--output-file dist/$(subst :,-,$(notdir $(IMAGE))).cdx.json

ENGINE = $(notdir $(firstword $(foreach engine,docker podman buildah,$(shell command -v $(engine)))))

cluster-up: image ## A local cluster (kind): two worker nodes, the KubeRay operator, the image
	@IMAGE=$(IMAGE) $(PY) -m k8s cluster up

cluster-down: $(VENV)/.run ## Remove it
	@$(PY) -m k8s cluster down

chart: $(VENV)/.test $(VENV)/.chart ## Test the Helm chart without a cluster (needs helm and go)
	@helm lint --quiet helm/codeparrot --values helm/codeparrot/values-kind.yaml
	@$(VENV)/bin/helm-unittest helm/codeparrot
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m pytest tests/chart

e2e: $(VENV)/.test cluster-up ## Install, train, disturb, upgrade and remove on the local cluster
	@$(PY) -m pytest tests/e2e -s

##@ Work on it
test: $(VENV)/.test lint ## Lint, type-check, and run the unit and integration tests (JOBS=3 at a time)
	@$(PY) -m pytest -m "not faults" -n $(JOBS) --dist loadfile

faults: $(VENV)/.test ## Disturb runs in every way, and compare their results with those of an undisturbed one
	@$(PY) -m pytest -m "$(FAULTS)" -n 2 --dist loadgroup

unit: $(VENV)/.test ## The unit tests alone (seconds)
	@$(PY) -m pytest tests/unit

chaos: $(VENV)/.test ## Kill the workers of one training run fifty times (about a quarter of an hour)
	@CODEPARROT_NUM_KILLS=50 $(PY) -m pytest tests/integration/test_chaos.py -k random --timeout 3600

bench: $(VENV)/.test $(VENV)/.peers ## Measure against peers (ONLY=id for one)
	@$(PY) -m benchmarks $(ONLY)

lint: $(VENV)/.test ## ruff, mypy, import-linter
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-logo

fmt: $(VENV)/.test ## Format the code
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

schema: $(VENV)/.run ## Write the recipe's JSON schema anew, here and in the chart
	@$(PY) -m codeparrot.config > recipes/schema.json
	@$(PY) -m tests.chart.schema

lock: $(VENV)/.uv ## Renew the locks of the dependencies
	@echo uv | $(VENV)/bin/uv pip compile - $(LOCK) --upgrade -o requirements-uv.lock
	@echo cyclonedx-bom | $(VENV)/bin/uv pip compile - $(LOCK) --upgrade -o requirements-sbom.lock
	@$(call compile,,requirements.lock)
	@echo accelerate click-option-group datasketch duckdb scipy text-dedup trl | tr ' ' '\n' \
		| $(VENV)/bin/uv pip compile - --no-deps --constraint requirements.lock $(LOCK) --upgrade -o requirements-peers.lock
	@$(call compile,--extra dev --constraint requirements.lock,requirements-dev.lock)

LOCK := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-header --no-annotate
compile = $(VENV)/bin/uv pip compile pyproject.toml $(1) $(LOCK) --upgrade -o $(2)

##@ Set-up, done by the others
$(VENV)/.uv: Makefile
	@echo "making $(VENV)"
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, not " + sys.version' 
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

$(VENV)/.run: $(VENV)/.uv requirements.lock
	@echo "installing dependencies (6 GB, most of it CUDA libraries that come with torch) and compiling them"
	@$(call install,requirements.lock)
	@touch $@

$(VENV)/.test: $(VENV)/.run requirements-dev.lock
	@echo "installing development tools"
	@$(call install,requirements-dev.lock)
	@touch $@

# In an environment of its own: what it depends on would make every start of Ray slower.
$(VENV)/.sbom: $(VENV)/.uv requirements-sbom.lock
	@$(VENV)/bin/uv venv --quiet --clear --python $(PY) $(VENV)/sbom
	@$(VENV)/bin/uv pip install --quiet --python $(VENV)/sbom/bin/python --require-hashes -r requirements-sbom.lock
	@touch $@

# Apart from the rest, where only the benchmarks find it.
$(VENV)/.peers: $(VENV)/.uv requirements-peers.lock
	@echo "installing what the benchmarks compare with"
	@rm -rf $(VENV)/peers
	@$(VENV)/bin/uv pip install --quiet --target $(VENV)/peers --no-deps --require-hashes -r requirements-peers.lock
	@touch $@

$(VENV)/.chart: $(VENV)/.uv tests/chart/tools/go.mod tests/chart/tools/go.sum
	@command -v go > /dev/null || { echo "go is needed to build the programs that test the chart"; exit 1; }
	@echo "building programs that test the chart"
	@cd tests/chart/tools && GOBIN="$(CURDIR)/$(VENV)/bin" go install tool
	@touch $@

install = UV_COMPILE_BYTECODE=1 $(VENV)/bin/uv pip install --quiet --python $(PY) --require-hashes -r $(1)
