# lguest-nb. `make` alone lists what there is; `make boot` and `make test` need no other set-up.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help boot debian kvm lab test lint export picture run-notebooks docs docs-serve bench bench-before fuzz torture classroom clean bench-debian soak

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# What an environment is made from: change one of these and the next make brings it up to date.
METADATA := settings.ini setup.py pyproject.toml $(wildcard lguest_nb/data/x86_64/*.[ch])
# Workers of pytest. More than the cores there are only makes tests wait for each other.
JOBS ?= 2
# What `make lab` opens first.
NOTEBOOK ?= nbs/99_live_desk.ipynb
# Jupyter asks root whether that is meant; and nobody needs to know that we are here.
LAB_OPTIONS := $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate
# How long to fuzz or to soak, and what to fuzz with: there are wheels of it for Python 3.11 to 3.13 on x86-64, and no test needs it.
MINUTES ?= 1
FUZZER := atheris==3.0.0
# How often to boot each kind of Guest which tortures its processor.
BOOTS ?= 20
# A class of its own: how many students, and a Python for them, which other users must be able to run.
STUDENTS ?= 3
CLASSROOM := build/classroom
CLASS_PYTHON ?= $(firstword $(wildcard /usr/bin/python3) $(PYTHON))
# Where make docs-serve is to be found.
PORT ?= 8000

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

boot: $(VENV)/.run-time ## boot the tiny Guest: a prompt on a terminal, else a visit that proves each device
	@$(PY) tools/boot.py

debian: $(VENV)/.run-time ## make a Guest of Debian's own kernel and boot it: a shell on a terminal, else a visit as above
	@$(PY) tools/debian.py

kvm: $(VENV)/.run-time ## the same on /dev/kvm; where the processor has no virtualization, on that of one which QEMU emulates
	@$(PY) tools/kvm.py

lab: $(VENV)/.live ## JupyterLab with the notebooks: a Guest you can type into and watch
	@$(PY) -m jupyterlab $(LAB_OPTIONS) $(NOTEBOOK)

test: $(VENV)/.dev $(VENV)/.docs ## all the tests: exports, lint, types, notebooks, the site, pytest
	@$(PY) tools/check_export.py
	@$(MAKE) --no-print-directory lint docs
	@$(PY) -m pytest -n $(JOBS)

lint: $(VENV)/.dev ## ruff and mypy
	@echo "ruff and mypy look at the code ..." >&2
	@$(PY) -m ruff check
	@$(PY) -m mypy

export: $(VENV)/.dev ## write lguest_nb/ and README.md from the notebooks
	@echo "Exporting the notebooks ..." >&2
	@$(VENV)/bin/nbdev_export
	@$(PY) tools/readme.py

picture: $(VENV)/.dev ## boot both kinds of Guest on a pseudo-terminal, and draw their screens for README and site
	@$(PY) tools/boot_picture.py docs/_static/boot.svg docs/_static/debian.svg

run-notebooks: $(VENV)/.dev ## run every notebook and save its outputs in place
	@$(PY) tools/run_notebooks.py

docs: $(VENV)/.docs ## build the site in build/docs/html, from the notebooks and docs/
	@$(PY) tools/docs_build.py

docs-serve: docs ## build the site and serve it at http://127.0.0.1:PORT/ (8000)
	@$(PY) -m http.server --bind 127.0.0.1 --directory build/docs/html $(PORT)

bench: $(VENV)/.bench ## measure start-up, rings, one ping, the Host's costs, and how they grow; plots are in build/bench
	@$(PY) tools/bench.py
	@$(PY) tools/bench_rings.py
	@$(PY) tools/bench_ping.py
	@$(PY) tools/bench_host.py
	@$(PY) tools/bench_growth.py

bench-before: $(VENV)/.run-time ## measure a ping and a flood through the Launcher before and after June 2009
	@$(PY) tools/bench_before.py

bench-debian: $(VENV)/.bench ## Debian's kernel on our Host beside QEMU's: booting, network, disks and memory
	@$(PY) tools/bench_debian.py

soak: $(VENV)/.run-time ## keep all devices of a Debian Guest busy for MINUTES=1, with everything checked
	@$(PY) tools/soak.py --minutes $(MINUTES)

fuzz: $(VENV)/.fuzz ## throw hostile rings and files at everything for MINUTES=1; finds are kept in build/fuzz
	@$(PY) tools/fuzz.py --minutes $(MINUTES)

torture: $(VENV)/.dev ## a hard test of the processor under Debian's kernel: BOOTS=20 of each of six kinds
	@$(PY) tools/torture.py --boots $(BOOTS)

classroom: $(CLASSROOM)/.ready ## a JupyterHub, STUDENTS=3 at once, a Guest for each: measured, and cleared away
	@$(CLASSROOM)/venv/bin/python tools/classroom.py --students $(STUDENTS)

clean: ## remove what make made
	rm -rf $(VENV) build dist _proc _docs *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.run-time: $(METADATA)
	@sh tools/environment.sh $(VENV) '$(PYTHON)'
	@touch $@

$(VENV)/.live: $(METADATA) tools/environment.sh
	@sh tools/environment.sh $(VENV) '$(PYTHON)' notebooks
	@touch $(VENV)/.run-time $@

$(VENV)/.bench: $(METADATA) tools/environment.sh tools/test_packages.sh
	@PYTHON='$(PYTHON)' sh tools/test_packages.sh
	@sh tools/environment.sh $(VENV) '$(PYTHON)' bench
	@touch $(VENV)/.run-time $@

$(CLASSROOM)/.ready: $(METADATA) tools/environment.sh
	@mkdir -p $(CLASSROOM)
	@sh tools/environment.sh $(CLASSROOM)/venv '$(CLASS_PYTHON)' class
	@touch $@

$(VENV)/.fuzz: $(VENV)/.run-time
	@$(PY) -m pip install --quiet --disable-pip-version-check --only-binary :all: $(FUZZER) || { \
	    echo "make fuzz needs $(FUZZER), and there is no wheel of it within reach for this Python and processor." >&2; exit 2; }
	@touch $@

$(VENV)/.dev: $(METADATA) tools/environment.sh tools/test_packages.sh
	@PYTHON='$(PYTHON)' sh tools/test_packages.sh
	@sh tools/environment.sh $(VENV) '$(PYTHON)' dev
	@touch $(VENV)/.run-time $(VENV)/.live $@

$(VENV)/.docs: $(METADATA) tools/environment.sh
	@sh tools/environment.sh $(VENV) '$(PYTHON)' docs
	@touch $(VENV)/.run-time $@
