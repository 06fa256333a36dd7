# make demo, make test and the rest each do all their own set-up first.
# The distribution's, as on nodes, which others than root can read; the first in PATH where there is none
# that can make virtual environments.
PYTHON ?= $(shell found=$$(bin/find-python) && $$found -c 'import ensurepip' 2>/dev/null && echo $$found || echo python3)
PREFIX ?= /opt/hpcimg
DESTDIR ?=
# Of setup.cfg's extras, those that an installation gets.
EXTRAS ?=
# Of test-matrix: Debian releases, by default all that it knows, and where their roots are kept.
RELEASES ?=
MATRIX ?= .matrix
BIN := .venv/bin
PACKAGING := $(filter-out %.py %.spec %.conf %/debian,$(wildcard packaging/*)) $(wildcard packaging/debian/p*)

.PHONY: help example demo test test-kill test-long test-peers test-managers test-soak test-hostile test-matrix test-packages lint bench bench-throughput bench-docker bench-scale bench-peers install deb rpm clean
help:
	@echo "make demo              a throwaway Slurm, a registry, real jobs: see it work (two minutes)"
	@echo "make test              all tests"
	@echo "make test-kill         a thousand rounds of kill -9 at a random moment"
	@echo "make test-long         100,000 fuzzed comments, 10,000 histories of a cache, all faults (hours)"
	@echo "make test-peers        ten thousand random images beside umoci"
	@echo "make test-managers     the names of images beside the workflow managers themselves"
	@echo "make test-soak         five hundred jobs on a Slurm cluster where everything goes wrong"
	@echo "make test-hostile      fifty attacks by a user's jobs beside two hundred of another's"
	@echo "make test-matrix       the Slurm tests on Slurm 22.05, 24.11 and 26.05"
	@echo "make example           write etc/hpcimg.conf.example anew, after a change of config/keys.py"
	@echo "make test-packages     the packages installed, upgraded and removed in a clean Debian"
	@echo "make lint              ruff, mypy, shellcheck"
	@echo "make bench             time the warm hit and the cold ways"
	@echo "make bench-throughput  time large files beside curl"
	@echo "make bench-docker      time docker:// beside Apptainer"
	@echo "make bench-scale       time a job of 64 nodes beside one node alone"
	@echo "make bench-peers       time docker:// beside all others that can be had"
	@echo "make install           install to PREFIX ($(PREFIX)), below DESTDIR if set"
	@echo "make deb               build/hpcimg_VERSION_all.deb, for Debian and Ubuntu"
	@echo "make rpm               build/hpcimg-VERSION-1.noarch.rpm, for RHEL, SLES and their kin"

# The virtual environment, made anew when its ingredients change.
.venv/ready: setup.cfg tests/install-packages tests/fetch-old-squashfs
	tests/install-packages
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpcimg needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv --clear .venv
	tests/fetch-old-squashfs .venv/squashfs-tools-4.4
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	$(BIN)/python -m compileall -q hpcimg
	touch $@

# What says what each key is for is the program; the file is for those who read it on the web.
example: .venv/ready
	bin/hpcimg config --example >etc/hpcimg.conf.example

demo: .venv/ready
	$(BIN)/python -m tests.demo

# Four at a time, since most tests wait for daemons. A file's tests share what they started.
test: .venv/ready
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder

test-kill: .venv/ready
	HPCIMG_KILL_ROUNDS=1000 $(BIN)/python -m pytest --timeout=0 tests/faults/test_kill.py

test-long: .venv/ready
	HPCIMG_LONG=1 $(BIN)/python -m pytest tests/faults/test_cache_machine.py tests/faults/test_every_call.py tests/faults/test_fault_server.py tests/faults/test_fuzz.py tests/faults/test_kill_steps.py tests/faults/test_races.py tests/faults/test_write_errors.py tests/integration/test_site_tier.py

test-peers: .venv/ready
	HPCIMG_PEERS=10000 $(BIN)/python -m pytest --numprocesses 2 tests/integration/test_peers.py

test-managers: .venv/ready .managers/ready
	$(BIN)/python -m pytest tests/managers

# Workflow managers bring a hundred packages each, which are no part of any other test.
.managers/ready: tests/managers/requirements.txt
	$(PYTHON) -m venv --clear .managers
	.managers/bin/python -m pip install --quiet --requirement $<
	touch $@

test-soak: .venv/ready
	HPCIMG_SOAK_JOBS=500 $(BIN)/python -m pytest -s tests/soak

test-hostile: .venv/ready
	HPCIMG_HOSTILE_JOBS=50 HPCIMG_HONEST_JOBS=200 $(BIN)/python -m pytest -s tests/slurm/test_hostile_user.py

test-matrix:
	$(PYTHON) -m tests.matrix --directory "$(MATRIX)" $(RELEASES)

test-packages: .venv/ready
	$(BIN)/python -m tests.packages --directory "$(MATRIX)"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	shellcheck prolog/* epilog/* bin/* $(PACKAGING) tests/install-packages tests/fetch-old-squashfs tests/parts/*.sh tests/soak/*.sh tests/matrix/*.sh .ci/run

# Of an installation, as nodes have it.
bench: .venv/ready
	$(MAKE) --silent install DESTDIR= PREFIX="$(CURDIR)/.bench/tree"
	$(BIN)/python -m bench.warm_hit --tree .bench/tree

bench-throughput: .venv/ready
	$(BIN)/python -m bench.throughput

# Network namespaces with shaped links: seven minutes, as root.
bench-scale: .venv/ready
	$(BIN)/python -m bench.scale

# In Debian unstable's root file system of test-matrix, which has Apptainer.
bench-docker:
	$(PYTHON) -m tests.matrix --directory "$(MATRIX)" --run "$(BIN)/python -m bench.docker" sid

# Those of the others that are not installed there for tests come with it.
bench-peers:
	$(PYTHON) -m tests.matrix --directory "$(MATRIX)" --run "apt-get install -q -y --no-install-recommends podman charliecloud-builders" sid
	$(PYTHON) -m tests.matrix --directory "$(MATRIX)" --run "$(BIN)/python -m bench.peers" sid

# A tree that runs wherever it is moved to or mounted, read-only too: nothing in it names DESTDIR,
# and byte code is not compared with its source, since copies change times. What hooks may be
# running from is replaced at the end, by renames: an installation that fails leaves it alone.
TREE = $(DESTDIR)$(PREFIX)
# A link to python3 alone would find no library after the distribution's next Python.
FULL_PYTHON = $$($(PYTHON) -c 'import os, sys; print(os.path.realpath(sys._base_executable))')
COMPILE = .venv.new/bin/python -m compileall -q --invalidation-mode unchecked-hash

install:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpcimg needs Python 3.11 or newer: make install PYTHON=python3.11")'
	install -d -m 755 "$(TREE)" "$(TREE)"/prolog "$(TREE)"/epilog "$(TREE)"/bin
	rm -rf "$(TREE)"/.venv.??? "$(TREE)"/hpcimg.???
	umask 022; $(FULL_PYTHON) -m venv "$(TREE)/.venv.new"
	umask 022; $(PYTHON) packaging/requirements.py $(EXTRAS) | "$(TREE)/.venv.new/bin/python" -m pip install --quiet --no-compile --requirement /dev/stdin
	"$(TREE)/.venv.new/bin/python" -m pip uninstall --quiet --yes pip setuptools
	find "$(TREE)/.venv.new/bin" -type f -delete
	sed -i /^command/d "$(TREE)/.venv.new/pyvenv.cfg"
	umask 022; for file in $$(find hpcimg -name '*.py'); do install -D -m 644 $$file "$(TREE)/hpcimg.new/$${file#*/}" || exit; done
	umask 022; cd "$(TREE)" && $(COMPILE) -s hpcimg.new -p "$(PREFIX)/hpcimg" hpcimg.new
	umask 022; cd "$(TREE)" && $(COMPILE) -s .venv.new -p "$(PREFIX)/.venv" .venv.new/lib
	for page in man/man?/*; do install -D -m 644 $$page "$(TREE)/share/$$page" || exit; done
	for file in README.md CHANGELOG.md LICENSE docs/*; do install -D -m 644 $$file "$(TREE)/share/doc/hpcimg/$$file" || exit; done
	for file in $$(find etc -type f); do install -D -m 644 $$file "$(TREE)/$$file" || exit; done
	sed -i 's,/usr/lib/hpcimg,$(PREFIX),g' "$(TREE)"/etc/systemd/*
	cd "$(TREE)" && for part in .venv hpcimg; do [ ! -e $$part ] || mv $$part $$part.old; mv $$part.new $$part || exit; done
	rm -rf "$(TREE)"/.venv.old "$(TREE)"/hpcimg.old
	install -m 755 prolog/* "$(TREE)/prolog"
	install -m 755 epilog/* "$(TREE)/epilog"
	install -m 755 bin/* "$(TREE)/bin"
	packaging/completions "$(TREE)/bin/hpcimg" "$(TREE)/share"

# Below build/, with libraries of their own beside the package, for any Python of the node.
deb rpm:
	rm -rf build/tree
	PYTHON="$(PYTHON)" packaging/tree build/tree $(EXTRAS)
	packaging/$@ build/tree build

clean:
	rm -rf .venv .managers .matrix .bench build ./*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
