# The two commands of the README. Each sets up .venv by itself, from Python 3.11+ and a C compiler.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export LOCAL_SIZE ?= 2

.PHONY: demo test format
.DEFAULT_GOAL := demo

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "== setting up .venv (several GB: torch with CUDA, DALI)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dali,codecs,s3,ray,train,dev]'
	@touch $@

demo: $(READY)
	@echo "== raw plate to shards"
	shardgen build demo --out shards/demo
	shardgen verify shards/demo
	shardgen preview shards/demo --out runs/demo/preview.png
	@echo "== training (about six minutes on 2 CPU cores)"
	deepspeed train.py --config train/configs/demo_vqvae.yaml
	@echo "== embedding and evaluation"
	python -m train embed --run runs/demo --data shards/demo --out runs/demo/embeddings.parquet
	python -m train evaluate --embeddings runs/demo/embeddings.parquet --label phenotype --out runs/demo/report
	@echo runs/demo/preview.png

test: $(READY)
	ruff check .
	ruff format --check .
	mypy
	python -m pytest -n 2 --dist loadfile

format: $(READY)
	ruff check --fix .
	ruff format .
