# The commands of the project. `make help` lists them. Works with GNU make 3.81 and later.

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
LOCK := .requirements.lock
STAMP := $(VENV)/.installed

# What the lock pins beyond pyproject.toml; the reasons are in threat_model/decisions/0006-torch-pins.md.
PINS := "setuptools>=77" "torch==2.14.1" "torchvision==0.29.2" "opacus==1.6.0" "open_clip_torch==3.3.0" "diffusers==0.42.1"

.PHONY: help demo test test-flare soak bench fuzz lock clean

help:
	@echo "make demo    install into $(VENV), then run a federation of silos on this machine from start to audit"
	@echo "make test    install into $(VENV), then style, types, import rules and all tests"
	@echo "make test-flare  install NVIDIA FLARE into $(VENV) as well, and run the tests that need it (fifteen minutes)"
	@echo "make soak    a million schedules of the simulation, or MINUTES=... of them from seed FROM=..."
	@echo "make bench   the measurements behind the numbers in README.md"
	@echo "make fuzz    hand the parsers and the silo's session to atheris for FUZZ_SECONDS (60)"
	@echo "make lock    write $(LOCK) anew (needs uv)"
	@echo "make clean   remove $(VENV), caches and demo runs"
	@echo "PYTHON=...   the Python 3.11 or newer to build $(VENV) with"

demo: $(STAMP)
	$(BIN)/cachefl-secure demo

test: $(STAMP)
	@echo "==> ruff check: style and unsafe calls"
	$(BIN)/ruff check .
	@echo "==> ruff format: layout"
	$(BIN)/ruff format --check .
	@echo "==> mypy: types, strict"
	$(BIN)/mypy
	@echo "==> lint-imports: who may import whom"
	$(BIN)/lint-imports
	@echo "==> pytest: examples, vectors, properties, threats; ends with the table of claims"
	$(BIN)/python -m pytest -v -n 2 --dist loadfile

# FLARE is not in the lock: one of its packages comes as source only, and the lock installs wheels alone.
test-flare: $(STAMP)
	$(BIN)/python -m pip install -q "nvflare==2.9.0"
	$(BIN)/python -m pytest -v -p no:cacheprovider tests/transport/test_flare.py tests/transport/test_flare_kits.py \
	  tests/transport/test_flare_orders.py tests/transport/test_flare_site_requests.py tests/transport/test_flare_hosts.py \
	  tests/transport/test_flare_killed.py tests/transport/test_flare_certificates.py tests/transport/test_flare_shadowed.py \
	  tests/transport/test_flare_faults.py tests/transport/test_same_sums.py tests/cli/test_tutorial.py

# `make soak MINUTES=30 FROM=2000000`; two processes.
SCHEDULES := 1000000
FROM := 1000000
MINUTES := 600

soak: $(STAMP)
	$(BIN)/python -m tests.simulation --schedules $(SCHEDULES) --from $(FROM) --minutes $(MINUTES)

bench: $(STAMP)
	@for bench in tests/bench/*.py; do \
	  [ -e "$$bench" ] || { echo "no benches yet"; break; }; \
	  echo "==> $$bench"; $(BIN)/python "$$bench" || exit 1; \
	done

# atheris is not in the lock: it has wheels for Linux and few versions of Python, and nothing else needs it.
FUZZ_SECONDS ?= 60
fuzz: $(STAMP)
	@mkdir -p .fuzz-corpus
	$(BIN)/python -m pip install -q --only-binary :all: "atheris==3.0.0"
	$(BIN)/python -m tests.fuzz -max_total_time=$(FUZZ_SECONDS) -timeout=5 -rss_limit_mb=2048 .fuzz-corpus

# A stamp, so that a second `make demo` installs nothing unless the lock or pyproject.toml has changed.
$(STAMP): $(LOCK) pyproject.toml | $(BIN)/python
	@echo "==> installing the locked packages (torch makes this several GB on Linux; every file is checked against its hash)"
	$(BIN)/python -m pip install --only-binary :all: --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/python:
	@found=; \
	for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; then found=$$candidate; break; fi; \
	  if [ "$$candidate" = "$(PYTHON)" ]; then break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "cachefl-secure needs Python 3.11 to 3.14; install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; \
	fi; \
	echo "==> $$found -m venv $(VENV)"; "$$found" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Packages stay at the versions that they are locked at; delete $(LOCK) first to move them all.
lock:
	@cp $(LOCK) $(LOCK).new 2>/dev/null || true
	printf '%s\n' $(PINS) | uv pip compile pyproject.toml - --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header -q -o $(LOCK).new
	@{ echo "# Every package of every platform, with hashes. Written by 'make lock'; not edited by hand."; cat $(LOCK).new; } > $(LOCK)
	@rm $(LOCK).new

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .fuzz-corpus build dist *.egg-info demo-run*
	find cachefl_secure cli tests -name __pycache__ -type d -prune -exec rm -rf {} +
