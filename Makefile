# make install | demo | test | lab | web | prepare, and helpers for editing notebooks as text.
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY ?= true
export NO_ALBUMENTATIONS_UPDATE ?= 1
# Several processes share the cores while testing: one thread each, or they spin against each other.
TEST_ENV := OMP_NUM_THREADS=1 CMLOPS_LANG=en PYTHONHASHSEED=0

.DEFAULT_GOAL := help
.PHONY: help browser install demo test lab web prepare format check notebooks edit back new run

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: .venv/.installed  ## Create .venv with the tested versions

.venv/.installed: settings.ini setup.py pyproject.toml constraints.txt frontend/package-lock.json $(wildcard frontend/src/*)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install python3.11, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "The venv module is missing: on Debian or Ubuntu, apt-get install python3.11-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,postgres,s3,web]' -c constraints.txt
	$(BIN)/python tools/frontend.py
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbdev_install_hooks; fi
	@touch $@

demo: install  ## Real pictures become a registered, served classifier
	$(BIN)/cmlops demo

# Screens are tested in a real browser; Debian's package brings one where the machine has none.
browser:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium fonts-noto-cjk; } >/dev/null 2>&1 \
		|| { echo "Chromium is needed to test the screens: on Debian or Ubuntu, apt-get install chromium fonts-noto-cjk"; exit 1; }

test: install browser  ## Every check and every test
	$(BIN)/python tools/check_notebooks.py
	$(BIN)/ruff check nbs classification_mlops tests tools benchmarks setup.py
	$(BIN)/ruff format --check nbs tests tools benchmarks setup.py
	$(BIN)/python tools/check_export.py
	$(BIN)/python tools/readme.py --check
	$(TEST_ENV) timeout 1200 $(BIN)/nbdev_test --n_workers 2 --timing
	$(TEST_ENV) timeout 1500 $(BIN)/pytest -n 2 --dist loadfile --durations=20

lab: install  ## Open JupyterLab on this workspace
	$(BIN)/jupyter lab

web: install  ## Show the screens in a browser
	$(BIN)/cmlops web

format:
	$(BIN)/nbdev_clean
	$(BIN)/ruff format nbs tests tools benchmarks setup.py
	$(BIN)/ruff check --fix nbs tests tools benchmarks setup.py
	$(BIN)/nbdev_export
	$(BIN)/ruff check classification_mlops
	$(BIN)/python tools/check_notebooks.py

prepare: install browser format  ## Everything a commit needs, in order
	$(BIN)/python tools/readme.py
	$(TEST_ENV) $(BIN)/nbdev_test --n_workers 2
	$(TEST_ENV) $(BIN)/pytest -n 2 --dist loadfile --durations=20

edit:  ## make edit NB=nbs/db/05_split.ipynb: the notebook as text, in .text/
	@mkdir -p .text
	jupytext --to py:percent $(NB) -o .text/$(notdir $(basename $(NB))).py

back:  ## make back NB=...: the text back into the notebook, cell ids and outputs kept
	jupytext --to ipynb --update .text/$(notdir $(basename $(NB))).py -o $(NB)
	nbdev_clean --fname $(NB)

new:  ## make new NB=nbs/ui/05_x.ipynb: a notebook from .text/05_x.py, with the kernel papermill needs
	@mkdir -p $(dir $(NB))
	jupytext --set-kernel python3 --update-metadata '{"jupytext": null}' --to ipynb .text/$(notdir $(basename $(NB))).py -o $(NB)
	nbdev_clean --fname $(NB)

run:  ## make run NB=...: refresh the outputs of one notebook
	$(TEST_ENV) jupyter nbconvert --to notebook --execute --inplace $(NB)
	nbdev_clean --fname $(NB)
