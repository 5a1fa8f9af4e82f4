# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test quick coverage docs check bench recipes format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch  # first and alone, so that the pinned (CPU-sized) build is taken
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo,dev]'
	touch $@

demo: $(VENV)/.installed  ## train on 100,004 real ratings, print metrics and recommendations
	$(BIN)/python scripts/demo.py

test: $(VENV)/.installed  ## the whole test suite, doctests included
	$(BIN)/python -m pytest -n 2 --dist loadfile

quick: $(VENV)/.installed  ## what takes no more than two minutes and still touches every package
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

coverage: $(VENV)/.installed  ## which lines the whole suite runs; tracing them doubles its time
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

docs: $(VENV)/.installed  ## the documentation, build/docs/index.html; a warning is an error
	$(BIN)/zensical build --strict --clean

check: $(VENV)/.installed  ## lint, format, types, layers, then the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

bench: $(VENV)/.installed  ## all protocols; DATA=folder of ml-100k, IMPRESSIONS=folder of kuairand_late
	$(BIN)/python scripts/benchmarks/next_item.py --data $(DATA) --seeds 3 --output runs/next_item.json
	$(BIN)/python scripts/benchmarks/feedback.py --data $(DATA) --seeds 3 --output runs/feedback.json
	$(BIN)/python scripts/benchmarks/impressions.py --data $(IMPRESSIONS) --seeds 3 --output runs/impressions.json

recipes: $(VENV)/.installed  ## all recipes and their cards; DATA=folder of data sets (see scripts/recipes/README.md)
	$(BIN)/python scripts/recipes.py all --data $(or $(DATA),data)

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
