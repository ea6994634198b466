# make demo    sets everything up, then trains, evaluates, exports and predicts on real digits
# make test    sets everything up, then runs the test suite against the built wheel
# make lint    flake8 and isort, at the versions of requirements.txt
# make smoke   two steps of every recipe on synthetic data
# make setup   only the set-up: .venv with everything, Horovod with Gloo for MXNet
# make clean   removes what was built, not .venv
#
# PYTHON=/path/to/python3.x chooses the Python (3.8 to 3.11). What is done is not done again: the
# stamps in .venv are as new as the files they depend on.

PYTHON ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGES := .venv/.packages
HOROVOD := .venv/.horovod
WHEEL := build/.installed
# With directories: a file that was removed makes its directory newer.
SOURCES := $(shell find gluon_resnest recipes -name __pycache__ -prune -o -print)

.PHONY: demo test lint smoke setup clean
.DELETE_ON_ERROR:

demo: setup
	$(BIN)/python tools/demo.py

# Without restarts: behind a worker that crashed and was replaced, loadfile waits for ever.
test: setup $(WHEEL)
	OMP_NUM_THREADS=1 PYTHONPATH="$(CURDIR)/build/site" $(BIN)/pytest --quiet --durations=10 \
	    --numprocesses 2 --dist loadfile --max-worker-restart 0

lint: $(PACKAGES)
	$(BIN)/python -m flake8 gluon_resnest recipes tools tests setup.py
	$(BIN)/python -m isort --check-only --diff gluon_resnest recipes tools tests setup.py

smoke: setup
	@set -e; for recipe in $(filter-out %/__init__.py,$(wildcard recipes/*.py)); do \
	    echo "$$recipe --smoke"; $(BIN)/python $$recipe --smoke; done

setup: $(HOROVOD)

.venv/.created:
	@python=$$(PYTHON='$(PYTHON)' tools/preflight.sh) && echo "making .venv with $$python" && \
	    "$$python" -m venv .venv
	$(PIP) install --upgrade pip 'setuptools<70' wheel
	@touch $@

# GluonCV asks for opencv-python, whose files cover those of opencv-python-headless and need libGL.
$(PACKAGES): .venv/.created setup.py requirements.txt constraints.txt
	@echo "installing the packages of requirements.txt"
	$(PIP) install -c constraints.txt -r requirements.txt
	$(PIP) install -c constraints.txt --no-deps --force-reinstall opencv-python-headless
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# Without build isolation, because the build imports mxnet. MAKEFLAGS, because the build would
# inherit ours, and would run on one core for any that is not empty.
$(HOROVOD): $(PACKAGES)
	@if $(BIN)/python -W ignore -c 'import horovod.mxnet' 2>/dev/null; then \
	    echo "Horovod is already built"; \
	else \
	    PYTHON=$(BIN)/python tools/preflight.sh >/dev/null && \
	    echo "building Horovod with Gloo for MXNet (about a minute)" && \
	    HOROVOD_WITH_MXNET=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_TENSORFLOW=1 \
	    HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MPI=1 MAKEFLAGS=-j$$(nproc) \
	    $(PIP) install -c constraints.txt --no-build-isolation --no-cache-dir horovod; \
	fi
	@touch $@

# What users get: the tests would miss a file that setup.py forgets if they read the checkout.
$(WHEEL): $(PACKAGES) $(SOURCES)
	@rm -rf build
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(PIP) install --no-deps --target build/site build/wheel/*.whl
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache

-include peers.mk
