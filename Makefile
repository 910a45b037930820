# Everything runs from .venv; a stamp file makes the install run once for each change of the pins.
PYTHON ?= python3
PY := .venv/bin/python
SOURCES := raybone jobs tests

.PHONY: install demo test chaos check lint clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf runs/demo
	$(PY) -m raybone.cli demo --out runs/demo

check: install
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m mypy

test: check
	$(PY) -m pytest

# Long: kills drivers of running studies.
chaos: install
	$(PY) -m pytest tests/chaos -o norecursedirs=

clean:
	rm -rf runs .mypy_cache .ruff_cache
