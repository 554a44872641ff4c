# Homerun's commands. Each one brings the machine what it needs first (scripts/setup), so that a fresh one will do.
#
#   make demo    shows the main job: two revisions of a Flask app, traffic between them, to zero and back
#   make test    format, lints, unit and property tests, and the product by real gcloud and real containers
#   make check   what test does, and licences, bans, sources and docs
#   make bench   the figures beside their goals (bench/run NAME for one, bench/run --list for the names)
#   make e2e     the product's cases alone        make sim   what the scaling policy costs, in virtual time
#   make fmt     formats the code
#
# Containers need root: what does is run through sudo where the caller is not root. CARGO_TARGET_DIR is honoured.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.PHONY: demo test check bench e2e sim fmt quick release

target := $(abspath $(or $(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(target)
# The environment that cargo and its tests need crosses sudo by name, since a sudoers file may reset it.
as_root := $(if $(filter-out 0,$(shell id -u)),sudo -E env "PATH=$$PATH" "HOME=$$HOME" "CARGO_TARGET_DIR=$(target)",env)
nextest = $(as_root) HOMERUN_BIN="$(target)/debug/homerun" cargo nextest run --no-tests=fail

# The profile that builds fast (opt-level 1, no LTO); the release profile is for demo and bench.
# Tests ask for more features of some libraries, so that what they need is built apart; `test` builds the binary with them.
quick:
	cargo build --workspace --bins
release:
	cargo build --release -p homerun

test:
	scripts/setup test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo nextest run --workspace --no-run
	$(nextest) --workspace

check: test
	scripts/setup check
	cargo deny --all-features check bans licenses sources
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

e2e:
	scripts/setup test
	$(MAKE) quick
	cargo nextest run --workspace --no-run --test e2e
	$(nextest) --workspace --test e2e

demo:
	scripts/setup demo
	$(MAKE) release
	$(as_root) HOMERUN_BIN="$(target)/release/homerun" demo/run

bench:
	scripts/setup bench
	$(MAKE) release
	cargo build --release -p homerun-bench
	$(as_root) HOMERUN_BIN="$(target)/release/homerun" bench/run --all

sim:
	@cargo run --quiet -p homerun-sim

fmt:
	cargo fmt --all
