# Two commands do everything on a fresh machine with Python 3.10+ and make:
#   make demo    set-up, then the main job on simulated pairs: runs/demo/report.html
#   make test    set-up, then ruff, mypy, import-linter and pytest
# make bench measures what the README's table says, on an idle machine: about an hour on two cores.
# Both use .venv, make it when there is none, and install only when pyproject.toml changed.

PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/bash
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test lint types layers unit slow gpu pycuda softcuda peers bench clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "hfd-edge needs Python 3.10 or newer; $(PYTHON) is older. Name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing hfd-edge and its tools into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=23.2"
	@$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@# Types alone, apart from site-packages: there they would make "import tensorrt" succeed. What they
	@# declare as needed, TensorRT's own bindings, need a GPU build of it. Five of their lines are no Python:
	@# parameters named "in", and one without a default after some with.
	@rm -rf .venv/stubs
	@$(BIN)/python -m pip install --quiet --no-deps --target .venv/stubs "tensorrt-stubs==10.13.*"
	@sed -i.orig -E 's/([(,] *)in: /\1in_: /; s/, channel_axis: int\)/, *, channel_axis: int)/' \
	  .venv/stubs/tensorrt_bindings/tensorrt.pyi
	@touch $@

demo: setup
	$(BIN)/hfd-edge demo --out runs/demo

test: setup lint types layers unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

# Two halves side by side: hardly a test uses more than one core.
HALF := tests/softcuda tests/training
unit: pycuda
	@$(BIN)/python -m pytest -p no:cacheprovider $(HALF) > .half.log 2>&1 & half=$$!; \
	trap "kill $$half" INT TERM; \
	$(BIN)/python -m pytest $(HALF:%=--ignore=%); rest=$$?; \
	wait $$half; half=$$?; cat .half.log; exit $$((rest || half))

# PyCUDA has no wheels: built where CUDA's headers are, for the tests on the emulated GPU.
pycuda: setup
	@$(BIN)/python tests/softcuda/build_pycuda.py

slow: setup
	$(BIN)/python -m pytest -m slow

gpu: setup
	$(BIN)/python -m pytest -m gpu

softcuda: pycuda
	HFD_EDGE_SOFTCUDA=1 $(BIN)/python -m pytest -m gpu tests/gpu tests/softcuda

# What ours is compared with, beside the project's own environment, which it sees and does not change.
peers: .venv/peers/.installed

.venv/peers/.installed: .venv/.installed benchmarks/peers.txt
	@test -x .venv/peers/bin/python || $(BIN)/python -m venv .venv/peers
	@echo "Installing MONAI, torchgeo and ultralytics into .venv/peers"
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$(.venv/peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	@.venv/peers/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	@touch $@

runs/demo/demo.hfd/manifest.json:
	$(MAKE) demo

bench: setup peers runs/demo/demo.hfd/manifest.json
	.venv/peers/bin/python benchmarks/bench_preprocess.py
	$(BIN)/python benchmarks/bench_coldstart.py --bundle runs/demo/demo.hfd
	$(BIN)/python benchmarks/int8_cpu.py --bundle runs/demo/demo.hfd --data runs/demo/data/pairs
	.venv/peers/bin/python benchmarks/bench_peers.py --bundle runs/demo/demo.hfd --run runs/demo/runs/student
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/warp.py
	$(BIN)/python benchmarks/bench_scene.py --bundle runs/demo/demo.hfd
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
