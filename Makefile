# `make help` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BUF_VERSION := 1.75.0
BUF := npx --yes @bufbuild/buf@$(BUF_VERSION)

SAMPLE_COUNT ?= 10000
SAMPLE_FILE ?= sample-products.csv

# The build of `make run`. dev: built sooner. release: what is deployed, for load tests.
PROFILE ?= dev
BINARIES = target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

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
run: deps ## Starts a private Postgres and Redis, attaches a table of sample products, and serves on port 50051.
	@echo 'Building with the profile $(PROFILE); the first build takes minutes. PROFILE=release builds what is deployed.'
	cargo build --locked --profile $(PROFILE) -p hotshelf -p devstack
	BINARIES=$(BINARIES) $(BINARIES)/devstack exec --dir .devstack --sample-table -- scripts/run.sh

.PHONY: another
another: ## Starts a second instance, on port 50052, on the Postgres and Redis of a running `make run`.
	@scripts/another.sh

.PHONY: test
test: deps ## Runs every test on real, private servers.
	@scripts/test.sh

.PHONY: lint
lint: ## Checks format, clippy, the fences between modules, the language, the dependencies, the Prometheus rules, and the protos.
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/check-fences.sh
	scripts/check-language.pl
	@scripts/check-dependencies.sh
	@scripts/check-rules.sh
	@if $(BUF) --version >/dev/null 2>&1; then \
		echo '$(BUF) lint'; $(BUF) lint; \
	else \
		echo 'buf lint: SKIPPED, because npx (Node.js) is missing or cannot fetch buf'; \
	fi

.PHONY: instructions
instructions: ## Counts the instructions of the hot path, and fails when a count exceeds the baseline by more than 3 %.
	@scripts/install-deps.sh --with-valgrind
	cargo build --locked --release -p instructions
	target/release/instructions $(INSTRUCTIONS_ARGS)

.PHONY: instructions-bless
instructions-bless: ## Makes the current counts the baseline of `make instructions`.
	@$(MAKE) --no-print-directory instructions INSTRUCTIONS_ARGS=--bless

.PHONY: sample
sample: ## Writes sample products to SAMPLE_FILE (SAMPLE_COUNT of them).
	cargo run --locked --release -q -p devstack -- sample-products --count $(SAMPLE_COUNT) > $(SAMPLE_FILE)
	@echo 'Wrote $(SAMPLE_FILE).'

.PHONY: deb
deb: ## Builds a Debian package with the program and its systemd unit; needs cargo-deb.
	cargo build --locked --release -p hotshelf
	scripts/third-party-notices.sh > target/THIRD-PARTY-NOTICES.txt
	cargo deb --no-build -p hotshelf

.PHONY: soak
soak: deps ## Runs the long tests in release mode: minutes, not seconds.
	cargo test --locked --release -p hotshelf --test it -- --ignored --nocapture soak
	cargo test --locked --release -p hotshelf-model -- --ignored soak

.PHONY: check-coherence
check-coherence: deps ## Checks the promises under DURATION of mixed load on three instances, and measures staleness.
	cargo build --locked --release -p hotshelf -p checker
	target/release/checker --duration $(DURATION) $(CHECK_ARGS)

.PHONY: drill
drill: deps ## Injects one fault after the other under load, checks the promises, and prints what callers observed: 12 minutes.
	cargo build --locked --release -p hotshelf -p drill
	target/release/drill $(DRILL_ARGS)

.PHONY: hit-ratio
hit-ratio: ## Prints the hit ratio of the hot cache on generated traces, against LRU and the optimum.
	cargo run --locked --release -q -p inside -- hit-ratio

.PHONY: bench-deps
bench-deps: ## Installs h2load for `make bench`.
	@scripts/install-deps.sh bench

# A build of its own for hotshelf: together with the tools, cargo would enable the features that these need.
.PHONY: bench
bench: deps bench-deps ## Measures hotshelf side by side with other servers; BENCH_ARGS=--help lists the options.
	cargo build --locked --release -p hotshelf
	cargo build --locked --release -p bench -p baselines -p inside
	target/release/bench $(BENCH_ARGS)
