# make demo: set up and run the demo sweep.   make test: set up and run every test and check.
# make quick: the checks, and the tests without Ray, S3 servers and long trainings: for the loop of edit and run.
# make test-cluster: machines are lost under a cluster of hosts on this machine, and others rented in an emulated account;
# as root, about fifteen minutes.
# make test-browser: the tests of the page, and a Chromium for them where there is none.
# make test-large: two steps of the 88m preset on the CPU, five minutes.
# make gpu-check: on one GPU, the tests that need CUDA and what it is measured by, as a table; ten minutes.
# make s3: run an S3 server on loopback to try the tool against (SERVER=swift|ministack|ceph).
.PHONY: demo test test-browser test-large gpu-check test-cluster can-make-hosts check quick lint types tests bench s3 s3-servers clean
.DELETE_ON_ERROR:

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
# The suite starts a hundred processes, each of which would compile our modules again.
unexport PYTHONDONTWRITEBYTECODE
define check-python
@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer with venv is missing (on Debian: apt-get install python3-venv)"; exit 1; }
endef

demo: .venv/.ready
	$(BIN)/muon sweep run search_spaces/demo.yaml
	$(BIN)/muon report demo -o report

# Tests wait for processes and servers a third of their time, so there are more workers than cores. A file goes to one
# worker whole: what its tests share is made once, and tests/end_to_end/test_on_ray.py has one Ray at a time.
WORKERS ?= $(shell n=`getconf _NPROCESSORS_ONLN`; echo $$((n > 4 ? 8 : 2 * n)))
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test:
	$(check-python)
	$(MAKE) --no-print-directory --jobs=2 .venv/.ready .venv-s3/.ready
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory --jobs=2 types tests

check: test

quick: .venv/.ready
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory --jobs=2 types tests SELECTED='-m "not ray and not s3 and not slow"'

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Behind the tests on Ray, which end last, as the other tests are.
types:
	nice -n 5 $(BIN)/mypy

tests:
	$(PYTEST) $(SELECTED)

# No part of `make test`: it needs root and a few packages of Debian, which come first to say if one is missing.
test-cluster: can-make-hosts .venv/.ready .venv-s3/.ready .venv-ec2/.ready
	$(BIN)/pytest tests/cluster -x -s

# A part of `make test` too, which leaves them out where no Chromium is found.
test-browser: .venv/.ready
	@$(BIN)/python tests/browser/chromium.py || { \
	if [ "`id -u`" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq chromium; \
	else $(BIN)/playwright install chromium; fi; } || \
		{ echo "make: installing Chromium failed; put one on the PATH"; exit 1; }
	$(BIN)/pytest tests/browser

# No part of `make test`, for the minutes and the gigabytes it takes.
test-large: .venv/.ready
	MUON_LARGE=1 $(BIN)/pytest -m large -s

# No part of `make test` either: on a machine with one GPU, ten minutes.
gpu-check: .venv/.ready
	$(BIN)/python tests/gpu/check.py

can-make-hosts:
	$(check-python)
	@$(PYTHON) tests/cluster/hosts.py

# Each prints what it measured, the rival beside it, and the goal; exit 1 when short of it.
bench: .venv/.ready .venv-s3/.ready
	set -e; for script in tests/bench/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script; done

s3: .venv/.ready $(if $(filter ceph,$(SERVER)),,.venv-s3/.ready)
	$(BIN)/python tests/servers/s3_servers.py $(SERVER)

s3-servers: .venv-s3/.ready

# Of fifteen thousand modules a fifth is ever loaded: those are compiled, here and not by each process that comes first.
LOADED = import torch, ray.tune, ray.train.torch, polars, scipy.stats, altair, boto3, pytest, hypothesis

# Environments of their own: the servers need other versions of botocore than the tool.
.venv-s3/.ready: tests/servers/requirements.txt
.venv-ec2/.ready: tests/cluster/requirements.txt
.venv-s3/.ready .venv-ec2/.ready:
	$(check-python)
	$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $< || \
		{ echo "make: installing the servers of the tests failed; a package registry must be reachable"; exit 1; }
	touch $@

.venv/.ready: pyproject.toml constraints.txt
	$(check-python)
	$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]' || \
		{ echo "make: installing failed; a package registry must be reachable (pip's own settings are used)"; exit 1; }
	$(BIN)/python -c '$(LOADED)'
	touch $@

clean:
	rm -rf .venv .venv-s3 .venv-ec2 build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
