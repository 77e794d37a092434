# A fresh machine needs git, make, and Python 3.11 or newer with venv; everything else goes into $(VENV) and $(LOWEST).

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
ARGS ?=

BIN := $(VENV)/bin
# One stamp for running and one for developing: `make run` does not wait for linters.
RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed
LOWEST_INSTALLED := $(LOWEST)/.installed
# The tests whose code calls a dependency; what the others add is in how long they run and what they run against.
LOWEST_TESTS := bodies cli derived_state devices events exposition identity influx journal lineprotocol lower_bounds \
  operations releases settings simulate telemetry

.DEFAULT_GOAL := help
# A virtual environment that could not be finished must not pass for one.
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: $(RUNTIME) ## run the exporter on port 9746 (ARGS="--listen 127.0.0.1:9746" adds options)
	@exec $(BIN)/capgo-exporter serve $(ARGS)

.PHONY: demo
demo: $(RUNTIME) ## run an exporter with a simulated fleet on port 9746 (ARGS="--speed 600" lets time pass faster)
	@exec $(BIN)/capgo-exporter simulate demo $(ARGS)

.PHONY: test
test: $(DEVELOPMENT) ## run the tests (ARGS="-k journal" chooses some); says what it left out for want of a server
	$(BIN)/python -m pytest $(ARGS)

.PHONY: test-lowest
test-lowest: $(LOWEST_INSTALLED) ## test what calls dependencies with the oldest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest $(LOWEST_TESTS:%=tests/test_%.py) $(ARGS)

.PHONY: setup
setup: $(DEVELOPMENT) ## all that is needed to work on it, with the checks before each commit
	$(BIN)/pre-commit install

.PHONY: audit
audit: $(DEVELOPMENT) ## look up known vulnerabilities of everything installed; asks the advisory database, fails without it
	$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable > $(VENV)/audited.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement $(VENV)/audited.txt

.PHONY: dist
dist: $(DEVELOPMENT) ## build the wheel and the source distribution into dist/
	$(BIN)/python -m build --outdir dist

.PHONY: check
check: lint types container metrics-config ## all static checks: code, types, Dockerfile, compose file, Prometheus files

.PHONY: lint
lint: $(DEVELOPMENT) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: types
types: $(DEVELOPMENT) ## mypy
	$(BIN)/mypy

.PHONY: container
container: $(DEVELOPMENT) ## hadolint, and the compose file against its schema
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

.PHONY: metrics-config
metrics-config: ## promtool and amtool on what compose mounts, and the rules' tests, if they are installed
	@if command -v promtool >/dev/null; then \
	  promtool check config prometheus/prometheus.yml && \
	  promtool check rules --lint=all --lint-fatal prometheus/rules/*.yml && \
	  promtool test rules prometheus/rules-tests/*.yml; \
	else echo 'promtool is not installed: prometheus/prometheus.yml and the rules were not checked'; fi
	@if command -v amtool >/dev/null; then amtool check-config prometheus/alertmanager.yml; \
	else echo 'amtool is not installed: prometheus/alertmanager.yml was not checked'; fi

.PHONY: format
format: $(DEVELOPMENT) ## let ruff rewrite the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: dashboards
dashboards: $(DEVELOPMENT) ## write grafana/dashboards/*.json anew from grafana/generate
	$(BIN)/python -m grafana.generate

.PHONY: kubernetes
kubernetes: $(DEVELOPMENT) ## write deploy/kubernetes/rules.yaml and dashboards.yaml anew
	$(BIN)/python -m deploy.generate

.PHONY: metrics-tables
metrics-tables: $(DEVELOPMENT) ## write the tables of metrics in README.md and docs/metrics.md, and the golden pages, anew
	$(BIN)/python -m tests.support.metrictables
	REGENERATE_GOLDEN=1 $(BIN)/python -m pytest --quiet tests/test_exposition.py -k golden

.PHONY: pictures
pictures: $(DEVELOPMENT) ## plot the dashboards of a simulated month anew; needs prometheus and influxdb, some minutes
	$(BIN)/python -m grafana.pictures

.PHONY: alarms
alarms: $(DEVELOPMENT) ## measure false alarms and detection (ARGS="quiet --devices 5000"); docs/alerting.md has all of it
	$(BIN)/python -m benchmarks.alarms $(ARGS)

.PHONY: bench
bench: $(DEVELOPMENT) ## compare with peers (ARGS="--quick"); needs wrk, nginx, node; docs/performance.md has all of it
	$(BIN)/python -m benchmarks.bench $(ARGS)

.PHONY: bench-stages
bench-stages: $(DEVELOPMENT) ## CPU time of each stage of an event's way
	$(BIN)/python -m benchmarks.stages $(ARGS)

.PHONY: bench-targets
bench-targets: $(DEVELOPMENT) ## measure every target of docs/performance.md (ARGS="--only posts,page")
	$(BIN)/python -m benchmarks.targets $(ARGS)

.PHONY: bench-scaling
bench-scaling: $(DEVELOPMENT) ## speed over batch size, series, devices and backlog
	$(BIN)/python -m benchmarks.scaling $(ARGS)

.PHONY: clean
clean: ## delete the virtual environment, caches and builds (never the data directory)
	rm -rf $(VENV) $(LOWEST) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(LOWEST_INSTALLED): pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST)
	$(PYTHON) tests/support/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(LOWEST)/constraints.txt --editable '.[test]'
	touch $@

$(DEVELOPMENT): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(RUNTIME)
