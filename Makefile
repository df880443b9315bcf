# `make help` lists what there is. The first call makes .venv from requirements.lock.
# They are given to make (`make book PROFILE=full`); variables of the shell do not change them.
PROFILE := quick
CORES := 2
LOCK_FLAGS :=
SEED := 2
PYTHON :=
FRESH :=
ONLY :=

PY := .venv/bin/python
# As in workflow/Snakefile the longest go first, so that none is left to run alone at the end.
LONGEST := $(shell sed -n 's|^    "\([0-9a-z_]*\)",$$|notebooks/\1.ipynb|p' workflow/Snakefile)
CHAPTERS := $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard notebooks/*.ipynb)))
# Seconds. A machine with other work is slow, not wrong: only a kernel that died waits so long.
PATIENCE := 7200
STAMP := .venv/.stamp

# FRESH=1: nothing is taken from shipped/ or from earlier runs.
ifneq ($(filter-out 1,$(FRESH)),)
$(error FRESH='$(FRESH)' is not allowed: FRESH=1, or no FRESH, is needed)
endif
ifeq ($(FRESH),1)
export RRLIB_FRESH := 1
export RRLIB_STORE := $(CURDIR)/_run/fresh/artefacts
endif

# The settings of rrlib/lab/environment.py (see there why; tests/test_repo.py compares them), in place here
# for every process that make starts, whatever it imports first.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export CUBLAS_WORKSPACE_CONFIG := :4096:8
# A profile whose numbers are compared uses no vector units that some CPUs lack; one of hours, all.
ifneq ($(PROFILE),quick)
export RRLIB_CPU := native
unexport ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MKL_CBWR
else ifneq ($(filter $(shell uname -m),x86_64 AMD64),)
export ATEN_CPU_CAPABILITY := avx2
export ONEDNN_MAX_CPU_ISA := AVX2
export MKL_CBWR := AVX2,STRICT
endif
# Nothing here renders with MuJoCo; a value from outside could only ask for libraries not present.
# The others would change what Python imports (PYTHONPATH of ROS) or whether it keeps byte code
# (without it every process compiles torch again), what pytest runs, how Snakemake runs, where
# Jupyter looks for kernels, how figures are drawn, and which repository git describes.
OUTSIDE := PYTHON% PYTEST% SNAKEMAKE% JUPYTER% IPYTHON% MPL% MATPLOTLIB% \
	GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE CDPATH MUJOCO_GL
KEPT := PYTHONUTF8 PYTHONIOENCODING PYTHONUNBUFFERED
unexport $(filter-out $(KEPT),$(filter $(OUTSIDE),$(.VARIABLES)))
# Jupyter, Snakemake and matplotlib write into the home, and some machines have none.
ifeq ($(shell test -d "$$HOME" -a -w "$$HOME" && echo yes),)
export HOME := $(shell mkdir -p _run/home && pwd -P)/_run/home
endif
# An environment knows its folder: one that was copied or moved here is made anew.
ifeq ($(shell grep -sF -- "-m venv $$(pwd -P)/.venv" .venv/pyvenv.cfg),)
.PHONY: $(STAMP)
endif
.NOTPARALLEL:

.DEFAULT_GOAL := help
.PHONY: help book test test-book pdf release slurm verify faults check smoke bench mutants oldest accept ship lock format clean

help:  ## list the commands
	@echo "make book [PROFILE=quick]  run the chapters, build the book: _build/html/index.html"
	@echo "make test                  everything: tests, the chapters re-run and compared, the book"
	@echo "make test-book             every page of the book in a browser (needs Chromium)"
	@echo "make pdf                   the book as it is stored, in one file: _build/book.pdf (needs Chromium)"
	@echo "make release               build the distributions, install the wheel, use it"
	@echo "make slurm                 the quick mazes' diffusers as jobs of a SLURM on this machine"
	@echo "make verify [SEED=2]       judge the shipped rewards on fresh draws (ten minutes)"
	@echo "make faults [SEED=2]       kill runs, damage files, fill disks: one table (a quarter of an hour)"
	@echo "make check                 lint, and the tests of less than a fifth of a second (a minute)"
	@echo "make mutants [ONLY=words]  60 meant defects: which a quick test sees (minutes)"
	@echo "make smoke                 every chapter of full and paper, its own sizes, two steps (minutes)"
	@echo "make bench                 measure the page Speed again (minutes)"
	@echo "make oldest                the same tests on the oldest versions that pyproject.toml allows"
	@echo "make format                format the code and fix what the linter can fix"
	@echo "make accept [PROFILE=quick] run the chapters again, store their results in results/ and,"
	@echo "                           of the quick profile, their outputs in notebooks/"
	@echo "                           FRESH=1, with book, test or accept: train the shipped diffusers, too"
	@echo "make ship                  train the quick profile's diffusers anew, for shipped/"
	@echo "make lock                  pin requirements.lock from pyproject.toml"
	@echo "                           (LOCK_FLAGS=--upgrade: newest versions in its ranges)"
	@echo "make clean                 delete what was built; keeps .venv and the trained artefacts"

$(STAMP): requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" bash workflow/environment.sh
	@touch $@

# With FRESH=1 an empty store is part of what was asked for.
.PHONY: emptied
emptied:
	$(if $(FRESH),rm -rf _run/fresh)

book: $(STAMP) emptied
	$(PY) workflow/run.py $(PROFILE) --cores $(CORES)

accept: $(STAMP) emptied
	$(PY) workflow/run.py $(PROFILE) --cores $(CORES) --accept

ship: $(STAMP)
	$(MAKE) accept FRESH=1
	$(PY) workflow/ship_diffusers.py --store _run/fresh/artefacts

test: $(STAMP) emptied
	$(PY) -c "import matplotlib.font_manager"
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env \
		--nbval-cell-timeout=$(PATIENCE) --nbval-kernel-startup-timeout=$(PATIENCE) \
		$(CHAPTERS) tests

# What reads pages is asked for here alone: the book and the other tests need no browser.
.PHONY: browser pages
browser: $(STAMP)
	$(PY) workflow/print_book.py --check
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[browser]'

pages: browser
	$(PY) workflow/build_site.py --notebooks notebooks --results results \
		--work _run/pages --html _run/pages/html

test-book: pages
	RRLIB_HTML=_run/pages/html $(PY) -m pytest tests/browser

pdf: pages
	$(PY) workflow/print_book.py

# Of what is committed: a source distribution and a wheel in _run/release, the wheel installed in an
# environment of its own and used from there.
release: $(STAMP)
	rm -rf _run/release && mkdir -p _run/release/source
	git archive HEAD | tar -x -C _run/release/source
	cd _run/release/source && $(abspath $(PY)) -c \
		'import setuptools.build_meta as made; print(made.build_sdist(".."), made.build_wheel(".."))'
	$(PY) -m venv _run/release/venv
	_run/release/venv/bin/python -m pip install --quiet -c requirements.lock _run/release/*.whl
	cd _run/release && venv/bin/python source/workflow/release_smoke.py source/results/full

# A controller and a node of our own, on loopback; it says so at once if SLURM is not installed.
slurm: $(STAMP)
	$(PY) workflow/slurm.py --cores $(CORES)

verify: $(STAMP)
	$(PY) workflow/verify.py --seed $(SEED)

faults: $(STAMP)
	@$(PY) tests/faults/main.py --seed '$(SEED)' --results results/full

check: $(STAMP)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow and not lengthy and not book"

# ONLY: words, of which a defect's name has one; without, all of tests/mutants.yaml.
mutants: $(STAMP)
	$(PY) workflow/mutants.py --cores $(CORES) --only $(ONLY) --write

smoke: $(STAMP)
	$(PY) workflow/smoke.py --cores $(CORES)

bench: $(STAMP)
	$(PY) workflow/benchmark.py

# With the same pip settings as .venv, but the oldest version of each range. PYTHON= is heard, too.
oldest: $(STAMP)
	rm -rf _run/oldest && mkdir -p _run
	$(or $(PYTHON),$(PY)) -m venv _run/oldest
	$(PY) workflow/oldest.py >_run/oldest.txt
	_run/oldest/bin/python -m pip install -c _run/oldest.txt -e '.[book,test]'
	_run/oldest/bin/python -m pytest -m "not slow and not book"

format: $(STAMP)
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

# No hashes, no index and no local version: the pins hold for any source of the same packages.
lock: $(STAMP)
	$(PY) -m piptools compile --quiet --extra book --extra test --allow-unsafe --strip-extras \
		--no-header --annotation-style line --no-emit-options --no-emit-index-url \
		--no-emit-find-links --no-emit-trusted-host $(LOCK_FLAGS) \
		--output-file requirements.lock pyproject.toml
	sed -i.old -e '/considered to be unsafe/d' -e '/^$$/d' -e 's/+[a-z0-9.]*//' requirements.lock
	rm requirements.lock.old

clean:
	rm -rf _build _run book/_generated .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find rrlib tests workflow -name __pycache__ -exec rm -rf {} +
