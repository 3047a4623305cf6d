# The doors to the project. A fresh Debian or Ubuntu needs `make` and nothing else: each target first runs
# tests/setup.sh, which installs what is missing and takes no time when nothing is. The demo needs least of it, and asks
# for that itself.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# rustup puts cargo where a shell that was already open does not look.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

NEXTEST_PROFILE ?= default
ROUNDS ?= 10
# Of the randomised test of delta backups, in all, on seven versions.
DELTA_ROUNDS ?= 200
# A server mostly waits: half as many tests again as there are cores keep the cores busy.
NEXTEST := cargo nextest run --workspace --profile $(NEXTEST_PROFILE) --test-threads $(shell echo $$(($$(nproc) * 3 / 2)))
SCRIPTS := $(wildcard tests/*.sh tests/*/*.sh examples/kubernetes/base/*.sh packaging/*.sh packaging/debian/*) .ci/run

# Of the test of Patroni.
MAJOR ?= 17

.PHONY: help build setup demo test test-nightly patroni campaign fuzz bench bench-large-store containers kubernetes check package \
  package-test release deny book fmt

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26

setup:
	@tests/setup.sh

build: setup ## the release binary, target/release/walhalla
	cargo build --release --locked

demo: ## destroys a table and brings it back; STORE=s3://bucket/prefix for another store, KEEP=1 to look around
	@tests/demo.sh $(if $(STORE),--store '$(STORE)') $(if $(KEEP),--keep)

test: setup ## unit and integration tests against real PostgreSQL 9.6 to 19
	$(NEXTEST) --locked $(ARGS)

test-nightly: setup ## the same ROUNDS times over (ten), for what only happens now and then; 200 rounds of delta backups; 25 million rows; Patroni; as root also packages and the image from source
	WALHALLA_TEST_FULL_SIZE=1 $(NEXTEST) --locked --success-output immediate -E 'test(twenty_million_rows)'
	WALHALLA_TEST_DELTA_ROUNDS=$${WALHALLA_TEST_DELTA_ROUNDS:-$$((($(DELTA_ROUNDS) + $(ROUNDS) * 7 - 1) / ($(ROUNDS) * 7)))} \
	  $(NEXTEST) --locked --ignore-default-filter --stress-count $(ROUNDS) $(ARGS)
	$(MAKE) patroni MAJOR=17
	$(MAKE) patroni MAJOR=15
	$(MAKE) deny
	[ "$$(id -u)" != 0 ] || $(MAKE) package package-test
	[ "$$(id -u)" != 0 ] || $(MAKE) containers PARTS=source

patroni: ## three nodes of Patroni with etcd live through what docs/patroni.md tells (ten minutes); MAJOR=15, KEEP=1 to look around
	@tests/patroni/setup.sh $(MAJOR)
	@[ -n "$${WALHALLA_TEST_PROGRAM:-}" ] || cargo build --workspace --locked --bins --examples
	@.cache/patroni/bin/python tests/patroni/run.py --major $(MAJOR) $(if $(KEEP),--keep)

# Files of its clusters lie in memory where there is room for them: what is measured is not the disk.
CAMPAIGN_DIR = $(shell [ "$$(df --output=avail -BG /dev/shm 2>/dev/null | tail -1 | tr -dc 0-9)0" -ge 80 ] && echo /dev/shm || echo /var/tmp)
campaign: setup ## clusters live through ROUNDS (ten) rounds of faults, with new seeds; SEED=N repeats one, PROGRAM=path tests another build
	cargo build --workspace --locked --bins --examples
	WALHALLA_CAMPAIGN_ROUNDS=$(ROUNDS) WALHALLA_CAMPAIGN_SEED=$(SEED) WALHALLA_TEST_DIR=$${WALHALLA_TEST_DIR:-$(CAMPAIGN_DIR)} \
	  WALHALLA_TEST_PROGRAM=$${PROGRAM:-target/debug/walhalla} cargo test --workspace --locked --test campaign -- --nocapture

fuzz: setup ## each fuzz target for FUZZ_SECONDS (60), from the seeds in fuzz/corpus; TARGETS="name …" for some of them
	@tests/fuzz.sh $(TARGETS)

containers: ## builds docker/ and runs it in Podman: four stacks, walk-throughs a to d (as root); PARTS="s3 demo", PROGRAM=path for a binary that is there
	@PROGRAM="$(PROGRAM)" tests/containers/run.sh $(PARTS)

bench: setup ## figures beside pgBackRest, pg_basebackup, lz4 and tar, into docs/benchmarks.md (45 minutes and more); ARGS='--only backlog --segments 20'
	@python3 tests/bench/run.py $(ARGS)

bench-large-store: setup ## what commands cost that look at an archive of years
	@tests/bench-large-store.sh $(ARGS)

kubernetes: setup ## as root: checks the manifests of examples/kubernetes, and runs their containers in Podman
	cargo build --workspace --locked --bins --examples
	@tests/kubernetes/run.sh $(ARGS)

check: setup ## what CI checks besides the tests: format, lints, documentation, shell scripts
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked
	@if command -v shellcheck >/dev/null; then shellcheck -x $(SCRIPTS); else echo 'check: shellcheck is not installed, shell scripts were not checked'; fi

package: ## the Debian package, into target/dist; PROGRAM=path packs another build
	@[ -n "$(PROGRAM)" ] || tests/setup.sh 17
	@packaging/build.sh $(PROGRAM)

package-test: ## installs the package on a fresh Debian 12 and 13, follows docs/packages.md there, and purges it; as root
	@tests/package.sh $(SUITES)

release: ## packages, archives, SBOM and checksums into target/release-VERSION; ARGS=--without-advisories where GitHub is out of reach
	@tests/setup.sh 17
	@packaging/release.sh $(ARGS)

deny: ## licences, origins and duplicates of what Walhalla is built from
	@packaging/setup.sh
	.cache/packaging/bin/cargo-deny --all-features --locked check bans licenses sources

book: ## docs/ as web pages in target/book, by mdBook; fails on a warning
	@mkdir -p target && tests/get-mdbook.sh .cache/mdbook
	@.cache/mdbook/bin/mdbook build docs 2>&1 | tee target/book.log
	@! grep -E 'WARN|ERROR' target/book.log

fmt: ## formats the Rust code
	cargo fmt --all
