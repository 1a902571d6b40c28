# `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BUF_VERSION := 1.75.0
BUF := npx --yes @bufbuild/buf@$(BUF_VERSION)

SAMPLE_COUNT ?= 10000
SAMPLE_FILE ?= sample-products.csv

DURATION ?= 10m
# For instance: --cluster
CHECK_ARGS ?=
# For instance: --only redis-killed, --short, --list
DRILL_ARGS ?=

# For instance: --full, or --only reads
BENCH_ARGS ?=

.PHONY: help
help: ## Lists these targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Installs what is missing: PostgreSQL and Redis servers, a C compiler.
	@scripts/install-deps.sh

.PHONY: run
run: deps ## Starts everything: a private Postgres and Redis, sample products, the service on port 50051.
	cargo build --locked --release -p hotshelf -p devstack
	target/release/devstack exec --dir .devstack -- scripts/run.sh

.PHONY: another
another: ## Starts a second instance, on port 50052, from the servers of a `make run` that is running.
	@scripts/another.sh

.PHONY: test
test: deps ## Runs every test against private, real servers.
	@scripts/test.sh

.PHONY: lint
lint: ## Checks format, clippy, the fences between modules, the dependencies, and the protos.
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/check-fences.sh
	@scripts/check-dependencies.sh
	@if $(BUF) --version >/dev/null 2>&1; then \
		echo '$(BUF) lint'; $(BUF) lint; \
	else \
		echo 'buf lint: SKIPPED, because npx (Node.js) is missing or cannot fetch buf'; \
	fi

.PHONY: instructions
instructions: ## Counts the instructions of the hot path, and fails when they have become more by 3 %.
	@scripts/install-deps.sh --with-valgrind
	cargo build --locked --release -p instructions
	target/release/instructions $(INSTRUCTIONS_ARGS)

.PHONY: instructions-bless
instructions-bless: ## Makes what is counted now the baseline of `make instructions`.
	@$(MAKE) --no-print-directory instructions INSTRUCTIONS_ARGS=--bless

.PHONY: sample
sample: ## Writes sample products to SAMPLE_FILE (SAMPLE_COUNT of them).
	cargo run --locked --release -q -p devstack -- sample-products --count $(SAMPLE_COUNT) > $(SAMPLE_FILE)
	@echo 'Wrote $(SAMPLE_FILE).'

.PHONY: soak
soak: deps ## Runs the long tests in release mode: minutes, not seconds.
	cargo test --locked --release -p hotshelf --test it -- --ignored --nocapture soak
	cargo test --locked --release -p hotshelf-model -- --ignored soak

.PHONY: check-coherence
check-coherence: deps ## Looks for broken promises in DURATION of mixed load on three instances, and measures staleness.
	cargo build --locked --release -p hotshelf -p checker
	target/release/checker --duration $(DURATION) $(CHECK_ARGS)

.PHONY: drill
drill: deps ## Breaks everything that can break, one after the other, under load, and prints what callers felt: 12 minutes.
	cargo build --locked --release -p hotshelf -p drill
	target/release/drill $(DRILL_ARGS)

.PHONY: bench-deps
bench-deps: ## Installs what `make bench` needs besides: h2load.
	@scripts/install-deps.sh bench

# hotshelf by itself, as it is deployed: the features that the tools need are not its own.
.PHONY: bench
bench: deps bench-deps ## Measures hotshelf side by side with other servers; BENCH_ARGS=--help lists what can be asked for.
	cargo build --locked --release -p hotshelf
	cargo build --locked --release -p bench -p baselines -p inside
	target/release/bench $(BENCH_ARGS)
