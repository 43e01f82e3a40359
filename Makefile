# The commands of this project; each sets up what is missing first. README.md says what they print.

ok = $(shell $(1) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(1))
PYTHON ?= $(or $(call ok,python3),$(call ok,python3.14),$(call ok,python3.13),$(call ok,python3.12),$(call ok,python3.11),python3)
BIN := .venv/bin

export PORT CALLER CSM_MODEL CSM_DEVICE CSM_ENGINE_URL AGENT_STT AGENT_LLM VOICE_SOURCE

.PHONY: call web test setup check bench serve soak lock clean help

help:
	@echo 'make call   a whole call on this machine, recorded into out/'
	@echo 'make web    the same server and agent with a page for the browser'
	@echo 'make test   all tests'
	@echo 'make setup  .venv, the LiveKit server, the offline models (the others do this first)'
	@echo 'make check  ruff, mypy and the import rules'
	@echo 'make serve  the engine server alone, make bench: all benchmarks'
	@echo 'make soak   the long forms of the reliability tests, 45 minutes or more'
	@echo 'make lock   pin all packages anew, make clean: remove what the others made'

setup:
	@$(PYTHON) -m scripts.setup

call: setup
	@$(BIN)/python -m scripts.call

web: setup
	@$(BIN)/python -m scripts.web

test: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=8 $(ARGS)

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

# The long forms of the reliability tests; what they measured is left in out/soak.
soak: setup
	@rm -rf out/soak
	@OMP_NUM_THREADS=1 SOAK_OUT=out/soak $(BIN)/python -m pytest -m soak --durations=0 $(ARGS); \
	   status=$$?; $(BIN)/python -m tests.chaos.figures out/soak; exit $$status

# Pins every package that the requirements bring along; --universal: for each platform and Python.
lock: setup
	@{ echo '# Every package of .venv, exactly; made by `make lock`.'; \
	   .tools/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header \
	     --no-annotate --no-emit-index-url requirements*.txt; } > constraints.txt.new
	@mv constraints.txt.new constraints.txt

clean:
	rm -rf .venv .tools out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
