# Every target makes .venv and installs what it needs first.
# TORCH chooses the torch of a new .venv, without it the newest one is taken:
#   make test TORCH="torch==2.13.0"

PYTHON ?= python3
TORCH ?=
DEMO_PHOTO ?= chelsea
DEMO_STYLE ?= preset:gold
BIN := .venv/bin
# one stamp a choice of torch; without a choice, the torch that is there will do
CHOICE := $(shell printf %s '$(TORCH)' | tr -c 'A-Za-z0-9.=+_-' _)
STAMP := $(or $(if $(TORCH),.venv/installed-$(CHOICE)),$(wildcard .venv/installed-*),.venv/installed-any)

.PHONY: setup demo test coverage check docs bench-stylize bench-norm clean

setup: $(STAMP)
	@$(BIN)/normapps --version

# The torch that is there stays: a newer torchvision that wants another one is not taken.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing normapps and its tools (minutes, the first time)"
	@test -z '$(TORCH)' || $(BIN)/pip install --quiet $(TORCH)
	@$(BIN)/pip list --format=freeze | grep '^torch==' > .venv/torch.txt || true
	@$(BIN)/pip install --quiet --constraint .venv/torch.txt --editable '.[dev]'
	@rm -f .venv/installed-* && touch '$@'

demo: $(STAMP)
	@$(BIN)/python examples/photos.py demo
	$(BIN)/normapps stylize demo/$(DEMO_PHOTO).jpg --style $(DEMO_STYLE) -o demo/stylized.jpg --overwrite
	@echo demo/stylized.jpg

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# tracing lines takes half of the time again, which is why `test` does not
coverage: $(STAMP)
	@rm -f .coverage .coverage.*
	@OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n 2
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

check: $(STAMP)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(STAMP)
	@$(BIN)/python docs/build_api.py docs/api
	@echo docs/api/index.html

bench-stylize: $(STAMP)
	@$(BIN)/python benchmarks/stylize.py

bench-norm: $(STAMP)
	@$(BIN)/python benchmarks/norms.py

clean:
	@rm -rf .venv build dist *.egg-info demo docs/api .coverage .coverage.* htmlcov
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
