# Everything runs from .venv; a stamp file makes the install run once for each change of the pins.
PYTHON ?= python3
PY := .venv/bin/python
SOURCES := raybone jobs tests benchmarks

.PHONY: install demo test chaos benchmark papers reference check clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf runs/demo
	$(PY) -m raybone.cli demo --out runs/demo

check: install
	$(PY) -m ruff format --check --quiet $(SOURCES)
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m mypy

test: check
	$(PY) -m pytest -n 2 --dist loadfile

# Long: kills drivers and workers of running studies, as root cuts a network between two hosts, and trains a YOLO until
# it finds lesions, by our loop and by Ultralytics' trainer.
chaos: install
	$(PY) -m pytest tests/chaos -o norecursedirs=

# Side by side with the plain ways; minutes each (cluster.py and detectors.py: half an hour), results in benchmarks/results.
benchmark: install
	OMP_NUM_THREADS=1 $(PY) benchmarks/data.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/schedulers.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/samplers.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/scale.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/coverage.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/startup.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/cluster.py
	OMP_NUM_THREADS=2 $(PY) benchmarks/detectors.py
	OMP_NUM_THREADS=2 $(PY) benchmarks/segmenters.py

# The studies of the papers on a phantom, beside the published figures; half an hour each.
papers: install
	for paper in wbbs spect lesions bs80k; do PATH="$$PWD/.venv/bin:$$PATH" jobs/paper.sh $$paper || exit 1; done

# The tables of docs/study.md, after a key was added or changed.
reference: install
	$(PY) -m raybone.run.reference > docs/study.md

clean:
	rm -rf runs .mypy_cache .ruff_cache
