# Everything a developer runs. `make` alone says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A DATABASE_URL in the environment or in .env is the programs', not the
# compiler's: without this, sqlx would ask that database about every query.
export SQLX_OFFLINE ?= true

target := $(or $(CARGO_TARGET_DIR),target)
programs := -p holdfast-api -p syncd

# SECONDS is also a variable of bash's own, which counts: only one given to make is meant.
torture_seconds := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60)

CUTS ?= 60
CASES ?= 500

.PHONY: help run check test fuzz-api torture power seeded-bugs demo bench sqlx sqlx-check install

help: ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14 | sed 's/^/make /'

run: ## run Holdfast in the foreground, without any database unless DATABASE_URL or .env names one
	@cargo build $(programs) -p holdfast-tests --bin holdfast-api --bin syncd --bin holdfast-run
	@$(target)/debug/holdfast-run

check: ## format, lints, layers, units and manifests
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --features holdfast-tests/bench,holdfast-tests/torture -- -D warnings
	tests/scripts/check-imports.sh
	@for verify in systemd/verify.sh deploy/verify.sh; do \
		if [[ -f $$verify ]]; then echo "bash $$verify"; bash "$$verify"; fi; \
	done

test: install sqlx-check ## all tests, with PostgreSQL and Redis of their own, and two minutes of torture
	cargo build $(programs)
	cargo test --workspace --features holdfast-tests/torture
	@for seed in "--seed 1" ""; do $(target)/debug/holdfast-torture --seconds 60 --keep $(target) $$seed; done

fuzz-api: install ## test the API by its own description, CASES=500 an operation, with SEED=… (fresh if none)
	cargo build $(programs)
	HOLDFAST_API_CASES=$(CASES) HOLDFAST_API_SEED=$(or $(SEED),$$RANDOM) \
		cargo test -p holdfast-tests --test fuzz -- --nocapture

torture: install ## hurt everything at once for SECONDS=60 with SEED=… (fresh if none), and check every promise
	cargo build --release $(programs)
	cargo build --release -p holdfast-tests --features torture --bin holdfast-torture
	@$(target)/release/holdfast-torture --seconds $(torture_seconds) --keep $(target) $(if $(SEED),--seed $(SEED))

power: install ## cut the power of the buffer's file system CUTS times (60) while clients write; needs root
	cargo build $(programs)
	HOLDFAST_POWER_CUTS=$(CUTS) cargo test -p holdfast-tests --test power

seeded-bugs: install ## does a test catch each of the bugs of shared/src/seeded.rs? (builds all once more)
	cargo run -p holdfast-tests --bin holdfast-seeded-bugs

demo: install ## an outage told in the terminal: PostgreSQL killed, writes go on, nothing lost
	cargo build --release $(programs) -p holdfast-tests --bin holdfast-api --bin syncd --bin holdfast-demo
	@$(target)/release/holdfast-demo

bench: install ## measure (on a quiet machine)
	cargo build --release $(programs)
	cargo run --release -p holdfast-tests --features bench --bin holdfast-bench

sqlx: install ## regenerate .sqlx after a query or a migration has changed
	tests/scripts/sqlx.sh write

sqlx-check: install ## check that .sqlx is fresh
	tests/scripts/sqlx.sh check

install: ## install what the tests need (PostgreSQL, PgBouncer, Redis, a C compiler) where it is missing
	@tests/scripts/install.sh
