# The ports of `make run`: make run PORT=8081 BACKEND_PORT=9091; its model: make run MODEL=swin_t
PORT ?= 8080
BACKEND_PORT ?= 9090
# How many processes share the tests of `make test` and `make test-fast`; 0: one, in the order of the files
JOBS ?= 2
# What `make soak` takes, about
MINUTES ?= 30

.DEFAULT_GOAL := help
.PHONY: help run install test test-fast check bench soak clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Label Studio and the backend on this machine, with a demo project (installs what is missing)
	@scripts/install.sh semsam label-studio
	@$(if $(MODEL),SEMSAM_MODEL=$(MODEL)) .venv/bin/semsam demo --port $(PORT) --backend-port $(BACKEND_PORT)

install: ## .venv with .venv/bin/semsam
	@scripts/install.sh semsam

test: ## every test, those in a real Label Studio and Chromium too
	@scripts/install.sh semsam dev label-studio chromium postgres
	@.venv/bin/python -m pytest -n $(JOBS)

test-fast: ## tests without Label Studio, browser and PostgreSQL, none of the slow ones
	@scripts/install.sh semsam dev
	@.venv/bin/python -m pytest -n $(JOBS) -m "not slow and not browser and not postgres"

check: ## lint, format, types and who imports whom
	@scripts/install.sh semsam dev
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

bench: ## speed and memory, default model and Swin-T
	@scripts/install.sh semsam
	@.venv/bin/python -m benchmarks.run
	@.venv/bin/python -m benchmarks.engines

soak: ## half an hour of clicks, kills, faults and hostile requests (MINUTES=30): out/soak
	@scripts/install.sh semsam dev postgres
	@.venv/bin/python -m pytest tests/endurance --soak-minutes $(MINUTES)

clean: ## remove environments, caches and outputs (.semsam/, which holds annotations, stays)
	rm -rf .venv .venv-ls out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
