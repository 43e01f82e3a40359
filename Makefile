# The project's commands. Each first installs what is missing. README.md describes their output.

ok = $(shell $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(1))
PYTHON ?= $(or $(call ok,python3),$(call ok,python3.14),$(call ok,python3.13),$(call ok,python3.12),$(call ok,python3.11),python3)
BIN := .venv/bin

# With PYTHONDONTWRITEBYTECODE set, compiled modules are kept in .tools/pycache. Otherwise each
# process would compile torch and LiveKit again (4 to 15 s), and a call starts six processes.
ifneq ($(PYTHONDONTWRITEBYTECODE),)
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX ?= $(CURDIR)/.tools/pycache
endif

# No `export` of settings: make passes on variables of its command line and of the environment by
# itself. `export` would set all others to empty ones, which have precedence over .env.

.PHONY: call web test test-oldest sanitize setup setup-call check bench pictures serve soak lock clean help

help:
	@echo 'make call         run a whole call on this machine and record it in out/'
	@echo 'make web          run the same server and agent with a web page for calls'
	@echo 'make test         run all tests'
	@echo 'make test-oldest  run the engine tests on the oldest allowed packages'
	@echo 'make sanitize     run the tests of the C kernels with the sanitisers of gcc'
	@echo 'make setup        install .venv, the LiveKit server and the offline models'
	@echo 'make check        run ruff, mypy and the import rules'
	@echo 'make serve        run the engine server alone'
	@echo 'make bench        run all benchmarks'
	@echo 'make pictures     regenerate the pictures of README and docs on an idle machine'
	@echo 'make soak         run the long reliability tests, 45 minutes or more'
	@echo 'make lock         pin all packages again'
	@echo 'make clean        remove everything that these commands created'

setup:
	@$(PYTHON) -m scripts.setup

# Installs only the requirements of a call.
setup-call:
	@$(PYTHON) -m scripts.setup call

call: setup-call
	@$(BIN)/python -m scripts.call

web: setup-call
	@$(BIN)/python -m scripts.web

test: setup
	@$(BIN)/python -m scripts.run_tests $(ARGS)

# Engine tests on the oldest versions that pyproject.toml allows.
test-oldest: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m scripts.oldest $(ARGS)

# Address and undefined-behaviour sanitisers, which need gcc.
sanitize: setup
	@$(BIN)/python -m scripts.sanitize $(ARGS)

check: setup
	@$(BIN)/ruff format --check --quiet . || { echo 'Not formatted: run $(BIN)/ruff format .'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m scripts.check_imports
	@$(BIN)/python -m scripts.check_web

serve: setup
	@$(BIN)/python -m csm_tts_plugin serve $(ARGS)

bench:
	@$(PYTHON) -m scripts.setup measuring
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# Regenerates the pictures of README and docs; needs an idle machine.
pictures: setup
	@$(BIN)/python -m scripts.pictures

# Long reliability tests; out/soak gets their figures.
soak: setup
	@rm -rf out/soak
	@OMP_NUM_THREADS=1 SOAK_OUT=out/soak $(BIN)/python -m pytest -m soak --durations=0 $(ARGS); \
	   status=$$?; $(BIN)/python -m tests.chaos.figures out/soak; exit $$status

# Pins every direct and indirect requirement; --universal: for all platforms and Python versions.
lock: setup
	@{ echo '# Every package of .venv, exactly; made by `make lock`.'; \
	   .tools/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header \
	     --no-annotate --no-emit-index-url requirements*.txt; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt

clean:
	rm -rf .venv .tools out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
