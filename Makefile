# Everything a fresh machine needs: python3 (3.11 or newer, with venv) and make.
#
#   make drill    train the bundled example, interrupt it again and again, prove that nothing was lost
#   make test     all tests
#   make check    lint, types and all tests
#   make slurm    install a real Slurm for the tests of tests/real (root on Debian); skipped by name without one
#   make test-gpu the tests that need a CUDA device; each is skipped by name without one
#   make bench    what a save costs beside what people use, on this machine, which must do nothing else
#   make soak     a thousand announced interruptions, two and a half hours; stopped, it goes on where it was when called again
#   make soak-schedules  hundreds of random schedules of kills without torch (half an hour)

PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c \
  'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
BIN := .venv/bin
READY := .venv/ready
AZURITE := .venv/node_modules/.bin/azurite-blob

.PHONY: drill drill-scripts test slurm test-gpu bench lint types check soak soak-schedules
.DELETE_ON_ERROR:

drill: $(READY)
	$(BIN)/outlast drill

# All nine kinds of interruption on four scripts as people write them; `make test` does two of each.
drill-scripts: $(READY)
	for name in cnn gan ema lm; do $(BIN)/outlast drill -- $(BIN)/python tests/drill/scripts/$$name.py || exit 1; done

# Two processes: the tests start servers and trainers of their own, and hold times on a two-core machine.
test: $(READY) $(AZURITE)
	$(BIN)/pytest -n 2 --dist loadfile

# Where the lists of packages are old, they are fetched anew and it is tried once more.
slurm:
	@command -v slurmctld >/dev/null && command -v munged >/dev/null && exit 0; export DEBIAN_FRONTEND=noninteractive; \
	  install="apt-get install -y -q slurm-wlm munge"; $$install || { apt-get update -q && $$install; }

# One process: the tests share one device. The torch that pip takes from PyPI is built for CUDA.
test-gpu: $(READY)
	$(BIN)/pytest -m gpu -v

# In an environment of its own: the peers want other versions of what the tests need.
bench: .venv-bench/ready
	for what in save.py 'save.py --idle' 'save.py --store s3' lora.py scaling.py restore.py resume.py; do \
	  .venv-bench/bin/python benchmarks/$$what || exit 1; done

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

check: lint types test

soak: $(READY)
	$(BIN)/python benchmarks/soak.py

soak-schedules: $(READY)
	OUTLAST_TEST_EXAMPLES=500 $(BIN)/pytest --timeout 7200 tests/crash/test_interruptions_property.py

# torch first and alone: so pip takes a CPU build that an index or --find-links of this machine offers.
$(READY): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Outlast needs Python 3.11 or newer; python3 here is:" \
	  "$$(python3 --version 2>&1 || echo missing). Install one, or say which: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet 'torch==2.13.0'
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

.venv-bench/ready: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet 'torch==2.13.0'
	.venv-bench/bin/pip install --quiet --editable '.[bench]'
	@touch $@

# Azure's emulator, for the tests of the stores.
$(AZURITE): Makefile
	@command -v npm >/dev/null || { echo "the tests need npm, to install Azurite; on Debian and Ubuntu: apt install npm" >&2; exit 1; }
	npm install --prefix .venv --no-audit --no-fund --silent azurite@3.37.0
	@touch $@
