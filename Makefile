# make demo: set up and run the main job on the embedded log      make test: set up and pass the tests
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all lint bench bench-smoke clean

demo: $(READY)
	$(BIN)/python -m incrs.train

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(READY)
	$(BIN)/python -m pytest -m "" -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.meta
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.queue

bench-smoke: $(READY)
	$(BIN)/python -m benchmarks.speed --smoke
	$(BIN)/python -m benchmarks.memory --smoke
	$(BIN)/python -m benchmarks.meta --smoke
	$(BIN)/python -m benchmarks.report --smoke

clean:
	rm -rf .venv

# The file is made last, so a set-up that was cut short starts again.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
