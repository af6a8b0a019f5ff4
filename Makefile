# Two commands on a fresh machine with Python ≥ 3.11: `make demo` and `make test`.

PYTHON ?= python3
PY := .venv/bin/python
INSTALLED := .venv/installed
# What is never imported need not be compiled: a third of the time. What is, is compiled once: an image
# that forbids that (many do) would have every process compile JAX anew, four seconds each.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo test test-long docs whole mutants fuzz clean

# The whole chain with s7-nano on the built-in corpus, in runs/demo, to a proven answer and a report.
demo: $(INSTALLED)
	$(PY) experiments/pipeline.py --preset s7-nano --run demo --evaluate-every 500k

# Lint, types, tests.
test: $(INSTALLED)-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

# The tests that take minutes each; with BUDGET=2400 as many as fit in so many seconds.
test-long: $(INSTALLED)-long
	$(PY) -m pytest -m long $(if $(BUDGET),--budget $(BUDGET))

# The API reference, from the docstrings, in build/docs; every link of it and of the documents.
docs: $(INSTALLED)-dev
	rm -rf build/docs
	$(PY) -W error::UserWarning -W error::RuntimeWarning -m pdoc --docformat google --no-show-source \
		--output-directory build/docs s7jax \
		'!s7jax.(commands|checkout|__main__)' '!s7jax.native.(_engine|library)'
	$(PY) tests/links.py build/docs *.md docs benchmarks

# Every phase and tool at the true size with a tiny budget, and a table of what each takes: an hour
# on two cores.
whole: $(INSTALLED)-dev
	$(PY) benchmarks/whole.py

# Re-sealed mutants of the sealed file on every core (an hour on two), and guided by coverage
# (some ten thousand a minute).
INPUTS ?= 10000000
mutants: $(INSTALLED)-dev
	$(PY) tests/adversarial/mutants.py $(INPUTS)
fuzz: $(INSTALLED)-dev
	$(PY) tests/adversarial/fuzz.py $(INPUTS)

$(INSTALLED): pyproject.toml $(wildcard s7jax/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[sign,serve]'
	touch $@

$(INSTALLED)-dev: $(INSTALLED)
	$(PIP) -e '.[dev]'
	touch $@

$(INSTALLED)-long: $(INSTALLED)-dev
	$(PIP) -e '.[dev,long]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
