# Everything a person needs: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format faults bench clean requirements

demo: $(READY)  ## run the whole DAG on the rendered dataset, then look at what it learned
	$(BIN)/phivision run --preset demo
	$(BIN)/phivision scores
	$(BIN)/phivision show

test: $(READY) lint  ## all tests, from units to the whole demo
	$(BIN)/python -m pytest

lint: $(READY)  ## style, types and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/lint-imports

format: $(READY)  ## put the code in the one style
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

faults: $(READY)  ## kill the pipeline fifty times at random instants
	PHIVISION_KILLS=50 $(BIN)/python -m pytest tests/faults --timeout 7200

bench: $(READY)  ## print the figures of every benchmark
	for file in tests/benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# uv installs in a fifth of pip's time and comes from the same index as everything else.
$(READY): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.txt --editable '.[dev,chat]'
	touch $(READY)

requirements: $(READY)  ## pin every dependency anew, without any index address
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
	  --no-emit-index-url --no-annotate --no-header --output-file requirements.txt pyproject.toml

clean:  ## forget the environment and the artifacts of this folder
	rm -rf $(VENV) .phivision
