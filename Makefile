# make app            start Rank Explorer in the browser
# make app MODEL=...  the same with a model of your own (a Python file, see README.md)
# make app EXPORT_FOLDER=DIR  pages may write there, as they may in this folder
# make check          ruff, mypy and the quick tests: those without a browser, training, exports and processes
# make test           ruff, mypy and all tests
# make docs           the pages in docs/ that the code writes, then the site in site/
# make litert         an environment in .litert that `export --format tflite --litert-python .litert` takes
# make clean          remove the environment and the caches

PYTHON ?= python3
PY := .venv/bin/python
CLEAR_FAILURE := { echo; echo "Installing stopped; the reason is in the lines above. A download needs a network connection" \
	"(behind a proxy: set HTTPS_PROXY)."; echo "Run the same command again to go on from here, or 'make clean' first to begin anew."; exit 1; }

.PHONY: app lint check test docs litert clean
.DEFAULT_GOAL := app

app: .venv/app.stamp
	@exec $(PY) -m streamlit run app.py -- $${MODEL:+"$$MODEL"} $${EXPORT_FOLDER:+"--export-folder=$$EXPORT_FOLDER"}

lint: .venv/dev.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Every process of the tests would translate all sources anew where an environment forbids to keep what was translated.
check test: export PYTHONDONTWRITEBYTECODE :=

# A file's tests share what they prepare, so they go to one process; those that take long are first (tests/conftest.py).
PYTEST := $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: lint
	$(PYTEST) -m "not browser and not slow"

test: lint
	$(PYTEST)

docs: .venv/dev.stamp
	$(PY) -m benchmarks.reference --write
	$(PY) -m mkdocs build --strict

litert:
	@"$(PYTHON)" -m venv .litert
	@.litert/bin/python -m pip install --disable-pip-version-check torch==2.13.0 litert-torch==0.10.0 || $(CLEAR_FAILURE)

.venv/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { echo "Rank Explorer needs Python 3.11 or newer, and there is no '$(PYTHON)' here."; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Rank Explorer needs Python 3.11 or newer, this is $$("$(PYTHON)" --version). Name another one: make PYTHON=python3.12"; exit 1; }
	@echo "Creating an environment in .venv"
	@"$(PYTHON)" -m venv .venv || \
		{ rm -rf .venv; echo "Python cannot create an environment here; on Debian: apt-get install python3-venv"; exit 1; }

.venv/app.stamp: requirements.txt constraints.txt | .venv/bin/python
	@echo "Installing PyTorch, Streamlit and what they need into .venv; this happens once."
	@echo "Download: about 380 MB, 1.7 GB on disk, with a CPU build of PyTorch (what macOS and Windows get)."
	@echo "On Linux the standard PyTorch is the CUDA build: several GB. Rank Explorer does not need it. To get the CPU"
	@echo "build, stop here (Ctrl-C), run the pip command for 'CPU' of pytorch.org's install page with .venv/bin/pip"
	@echo "and torch==2.13.0, then call make again: what is installed is kept."
	@$(PY) -m pip install --disable-pip-version-check -r requirements.txt || $(CLEAR_FAILURE)
	@$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --editable . || $(CLEAR_FAILURE)
	@touch $@

.venv/dev.stamp: .venv/app.stamp requirements-dev.txt requirements-hf.txt requirements-notebook.txt requirements-edge.txt
	@echo "Installing the tools for the tests: about 190 MB more to download, 0.8 GB on disk."
	@$(PY) -m pip install --disable-pip-version-check -r requirements-dev.txt || $(CLEAR_FAILURE)
	@touch $@

clean:
	rm -rf .venv .litert site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
