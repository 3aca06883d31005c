# `make` lists what there is. Nothing here hides a failure: a target fails where any command in it does.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# What `make demo` and `make run` build: the worker and the tour, in the profile that compiles fastest.
PROFILE ?= demo
BUILD_DEMO := cargo build --locked --profile $(PROFILE) --package unstale --package unstale-demo --bin unstale --bin tour
DEMO_DIR := $${CARGO_TARGET_DIR:-target}/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

# The worker as `make test` builds it: its dependencies are compiled once for both.
BUILD := cargo test --locked --no-run --test it

# `## text` after a target is its help. `##@ text` begins a group.
.PHONY: help
help: ## List the targets
	@if [ -t 1 ]; then bold=$$'\033[1m' plain=$$'\033[0m'; else bold= plain=; fi; \
	awk -F ':.*## ' -v bold="$$bold" -v plain="$$plain" \
		'/^##@ / { printf "\n%s%s%s\n", bold, substr($$0, 5), plain } \
		/^[a-z-]+:.*## / { printf "  %smake %-16s%s %s\n", bold, $$1, plain, $$2 }' $(MAKEFILE_LIST)

##@ Try it

.PHONY: build
build: ## Build the worker and the tour, as `make demo` and `make run` do
	$(BUILD_DEMO)

.PHONY: demo
demo: ## Install what is missing, start private servers and a worker, and play the tour of the patterns
	scripts/with-servers.sh --prepare
	$(BUILD_DEMO)
	scripts/with-servers.sh scripts/demo.sh $(DEMO_DIR)

.PHONY: run
run: ## The same servers, and a worker on schemas/ in the foreground, until Ctrl-C
	scripts/with-servers.sh --prepare
	$(BUILD_DEMO)
	scripts/with-servers.sh scripts/run.sh $(DEMO_DIR)/unstale $(DEMO_DIR)/tour

.PHONY: servers
servers: ## Only the servers, with a shell whose environment points to them, until you leave it
	scripts/with-servers.sh "$${SHELL:-bash}" -i

##@ Test

# The integration tests that take longest: attacks and outages one by one, and the small runs of the searches.
LONG_TESTS := attacks:: faults:: model:: soak:: survive::

.PHONY: test
# Most tests wait for servers most of the time: three for each core.
test: export RUST_TEST_THREADS := $(or $(RUST_TEST_THREADS),$(shell expr 3 '*' "$$(getconf _NPROCESSORS_ONLN)"))
test: install-servers ## Install what is missing, and run the tests of every package, but those of `make test-faults`, against servers that the tests start themselves
	cargo test --locked --workspace -- $(addprefix --skip ,$(LONG_TESTS))

.PHONY: test-faults
test-faults: export RUST_TEST_THREADS := $(or $(RUST_TEST_THREADS),$(shell expr 2 '*' "$$(getconf _NPROCESSORS_ONLN)"))
test-faults: install-servers ## The longer tests: hostile input, servers and workers that die or hang, and random interleavings
	cargo test --locked --test it -- $(LONG_TESTS)

.PHONY: test-matrix
# Servers of other roots are started through more processes: a bit less at once than `make test`.
test-matrix: export RUST_TEST_THREADS := $(or $(RUST_TEST_THREADS),3)
test-matrix: ## The integration tests on later servers (RabbitMQ 4, Redis 8, Valkey), in roots of Debian trixie and sid that it makes as root (PAIRS=sid-valkey and ONLY="permissions dlq" choose)
	scripts/test-matrix.sh $(PAIRS) -- $(ONLY)

.PHONY: soak
soak: install-servers ## The tests that have a full size, at that size: an hour and more (UNSTALE_SOAK_SEEDS=3,7 picks seeds)
	UNSTALE_FULL_RUNS=1 cargo test --locked --test it -- --include-ignored --nocapture --test-threads 1 \
		soak::a_seeded faults::outage dlq::browse::many_letters dlq::replay::killed_half_way dlq::replay::interrupted_half_way \
		replay::bounds::many_large

.PHONY: model
model: install-servers ## Try 100,000 interleavings of readers, writers and workers, on one Redis and on a cluster, and what must lose some: an hour and more (MODEL_SEEDS=3,7 picks seeds; with MODEL_ONLY=955 too, each plays that interleaving alone and prints its steps)
	MODEL_INTERLEAVINGS=$${MODEL_INTERLEAVINGS:-100000} cargo test --locked --test it -- model:: --nocapture

.PHONY: fuzz
fuzz: export FUZZ_VARIANTS := $(or $(FUZZ_VARIANTS),1000)
fuzz: export FUZZ_SECONDS := $(or $(FUZZ_SECONDS),$(if $(FUZZ_EVENTS)$(FUZZ_SEED),,600))
fuzz: ## Search rules and events for cost above the budget, optimized (FUZZ_SECONDS=600, or FUZZ_EVENTS=10000000; FUZZ_SEED=7 alone plays one round)
	cargo test --locked --profile optimized --test fuzz -- --nocapture

.PHONY: survive
survive: install-servers ## An optimized worker in a small box (256 MiB, half a CPU) with everything against it, at full size: half an hour
	UNSTALE_FULL_RUNS=1 cargo test --locked --profile optimized --test it -- --nocapture --test-threads 1 attacks:: survive::

.PHONY: test-languages
test-languages: install-servers ## Publish from every language of examples/ and see each event's effect (installs their clients)
	$(BUILD)
	scripts/test-languages.sh

.PHONY: test-clients
test-clients: install-servers ## Test the readers of clients/ (Python, Node) and the examples in all their languages beside a worker (installs redis-py and ioredis)
	$(BUILD)
	scripts/test-clients.sh

##@ Measure

BENCH ?=
ROUNDS ?= 5
OUT ?= target/bench

.PHONY: bench
bench: install-servers ## Measure the worker beside its peers: BENCH="a f" and ROUNDS=3 choose, OUT=docs/bench keeps the report
	cargo bench --locked --bench compare -- $(BENCH) --rounds $(ROUNDS) --out $(OUT)

##@ Check

.PHONY: lint
lint: lint-prose ## Check formatting, clippy, rustdoc and prose; a warning is an error
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps

.PHONY: lint-prose
lint-prose: ## The prose of pages and doc comments by docs/STYLE.md, and spelling (installs typos)
	python3 scripts/test_lint_prose.py
	scripts/lint_prose.py
	scripts/typos.sh

.PHONY: docs
docs: ## Build the site of the documentation into target/docs-site (installs mdBook)
	scripts/docs.sh

.PHONY: deny
deny: ## Check licences, sources, bans and duplicates of the dependencies by deny.toml; advisories where their database is reachable (installs cargo-deny)
	scripts/deny.sh

.PHONY: unused
unused: ## Find dependencies that nothing uses (installs cargo-machete)
	scripts/unused.sh

.PHONY: msrv
msrv: ## Build with the oldest Rust that Cargo.toml claims (installs it, unless RUSTUP_AUTO_INSTALL=0)
	scripts/msrv.sh

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

.PHONY: ci
ci: ## Run everything that must hold before a change is taken: lint, dependencies and all tests
	.ci/run

##@ Set up

.PHONY: install-servers
install-servers: ## Install redis-server and rabbitmq-server where they are missing (Debian)
	scripts/install-servers.sh
