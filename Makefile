# Everything runs from .venv; a stamp file makes the install run once for each change of the pins.
PYTHON ?= python3
PY := .venv/bin/python
SOURCES := raybone jobs tests benchmarks setup.py

.PHONY: install demo test long lowest chaos kubernetes endurance benchmark papers reference vega check clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf runs/demo
	$(PY) -m raybone demo --out runs/demo

check: install
	$(PY) -m ruff format --check --quiet $(SOURCES)
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m mypy

# Minutes: all but the tests of many seconds each, which tests/long.txt names.
test: check
	$(PY) -m pytest -n 2 --dist loadfile -m "not long"

# About half an hour: those. Whole searches on Ray that are killed, every model's contract, journeys through the pages.
long: install
	$(PY) -m pytest -n 2 --dist loadfile -m long --durations 20

# The lowest versions that pyproject.toml allows, in an environment of their own: after a bound was changed. Long, and 7 GB
# of disk. It found fsspec 2024.10, optuna 4.5, pillow 11.0, altair 5.4 and grpcio 1.42 too old.
lowest:
	$(PYTHON) -m venv .lowest
	.lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.lowest/bin/uv pip install --quiet --python .lowest --resolution lowest-direct --editable '.[dev]'
	.lowest/bin/python -m pytest tests/data tests/hpo tests/metrics tests/study/test_spec.py tests/results/test_report.py

# Three quarters of an hour: kills drivers, trials, workers, raylets and heads of running studies, fills disks, and as root
# cuts a network between two hosts.
chaos: install
	$(PY) -m pytest tests/chaos -o norecursedirs= -m "not endurance" --durations 0 --durations-min 10

# Half an hour on the cluster that kubectl points at; docs/kubernetes.md, "Trying it":
#   make kubernetes RAYBONE_IMAGE=REGISTRY/raybone:TAG RAYBONE_STORAGE_CLASS=CLASS
kubernetes: export RAYBONE_IMAGE := $(RAYBONE_IMAGE)
kubernetes: export RAYBONE_STORAGE_CLASS := $(RAYBONE_STORAGE_CLASS)
kubernetes: install
	$(PY) -m pytest tests/kubernetes -o norecursedirs= -o timeout=3000 -s -rs --durations 0 --durations-min 10 || test $$? -eq 5

# Hours: two thousand damaged inputs, thirty kills of verbs that write, a hundred searches and a thousand segments in a
# row, and a YOLO that trains until it finds lesions, by our loop and by Ultralytics' trainer.
endurance: install
	$(PY) -m pytest tests/chaos -o norecursedirs= -m endurance -s

# Side by side with the plain ways; minutes each (cluster.py and detectors.py: half an hour), results in benchmarks/results.
benchmark: install
	OMP_NUM_THREADS=1 $(PY) benchmarks/data.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/schedulers.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/samplers.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/models.py
	OMP_NUM_THREADS=1 $(PY) benchmarks/per_second.py
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

# What a report draws its charts with: the scripts as npm has them, in one file, and their licences. vega-lite is of the
# version that altair writes for; tests/results/test_report.py compares the two.
VEGA := vega@6.2.0 vega-lite@6.4.1 vega-embed@7.0.2
vega:
	set -e; folder=$$(mktemp -d); npm install --prefix $$folder --ignore-scripts --no-audit --no-fund $(VEGA); cd $$folder/node_modules; \
	{ echo "/* $(VEGA); BSD-3-Clause, (c) University of Washington Interactive Data Lab; with d3 (ISC, (c) Mike Bostock) and others: vega.txt of raybone */"; \
	cat vega/build/vega.min.js vega-lite/build/vega-lite.min.js vega-embed/build/vega-embed.min.js; } \
	| sed '/^\/\/# sourceMappingURL=/d' > $(CURDIR)/raybone/results/vega.js; \
	md5sum $$(ls */LICENSE* | grep -v -E '^(y|cliui|emoji|get-)') | sort -s -k 1,1 | awk \
	'$$1 != last { first[++n] = $$2 } { last = $$1; sub("/.*", "", $$2); names[n] = names[n] " " $$2 } \
	END { for (i = 1; i <= n; i++) { print "==" names[i] "\n"; fflush(); system("cat " first[i]); print "" } }' \
	> $(CURDIR)/raybone/results/vega.txt; rm -r $$folder

clean:
	rm -rf .lowest runs .mypy_cache .ruff_cache
