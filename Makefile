# The one list of tasks. `make help` prints it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Arguments for the demo and the benchmark: `make run ARGS=--once`.
ARGS ?=

# Both servers' addresses, as scripts/stack wrote them.
WITH_STACK := . $${STACK_DIR:-.stack}/env;

.PHONY: help
help: ## Print this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{ printf "  make %-20s %s\n", $$1, $$2 }'

.PHONY: run
run: ## Build in release, start everything, deliver 10,000 sample events (ARGS=--once: then stop)
	scripts/stack prerequisites build
	scripts/stack up
	cargo build --release --locked --package floodway --package floodway-loadtest
	$(WITH_STACK) exec target/release/loadtest demo --floodway target/release/floodway $(ARGS)

.PHONY: test
test: prerequisites lint ## Run every check and test that CI runs
	scripts/stack up
	cargo build --workspace --locked
	$(WITH_STACK) cargo test --workspace --locked --exclude floodway-e2e
	# One at a time: a test of these may have three brokers and all roles of its own, and two of them are more than two cores carry.
	$(WITH_STACK) cargo test --package floodway-e2e --locked -- --test-threads=1
	$(MAKE) k8s-check

.PHONY: outages
outages: ## Run the long tests of outages, which `make test` leaves out (about five minutes)
	scripts/stack up
	cargo build --package floodway --locked
	$(WITH_STACK) cargo test --package floodway-e2e --locked -- --ignored --nocapture

.PHONY: lint
lint: ## Check formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings

.PHONY: stack
stack: ## Start Kafka and PostgreSQL on loopback ports (installs what is missing)
	scripts/stack up

.PHONY: stack-down
stack-down: ## Stop Kafka and PostgreSQL, keep their data
	scripts/stack down

.PHONY: prerequisites
prerequisites: ## Install, or name, what builds and tests need
	scripts/stack prerequisites

.PHONY: loadtest
loadtest: ## Build in release, start everything, measure ingest for four minutes, write a report (ARGS="--profile standard")
	scripts/stack prerequisites build
	scripts/stack up
	cargo build --release --locked --package floodway --package floodway-loadtest
	$(WITH_STACK) exec target/release/loadtest bench ingest --floodway target/release/floodway \
	  --stack-dir $${STACK_DIR:-.stack} $(ARGS)

.PHONY: loadtest-dispatcher
loadtest-dispatcher: ## The same for the dispatcher: deliveries, latency, bad endpoints, backlogs, many subscriptions
	scripts/stack prerequisites build
	scripts/stack up
	cargo build --release --locked --package floodway --package floodway-loadtest
	$(WITH_STACK) exec target/release/loadtest bench dispatcher --floodway target/release/floodway \
	  --stack-dir $${STACK_DIR:-.stack} $(ARGS)

.PHONY: loadtest-scheduler
loadtest-scheduler: ## The same for the retry scheduler: rows stored beside a bare COPY, lateness, a start with many pending retries
	scripts/stack prerequisites build
	scripts/stack up
	cargo build --release --locked --package floodway --package floodway-loadtest
	$(WITH_STACK) exec target/release/loadtest bench scheduler --floodway target/release/floodway \
	  --stack-dir $${STACK_DIR:-.stack} $(ARGS)

.PHONY: bench
bench: ## Run the micro-benchmarks of the hot paths, then measure ingest, dispatcher and retry scheduler for half an hour each
	cargo bench --locked --package floodway-benches
	$(MAKE) loadtest ARGS="--profile full $(ARGS)"
	$(MAKE) loadtest-dispatcher ARGS="--profile full $(ARGS)"
	$(MAKE) loadtest-scheduler ARGS="--profile full $(ARGS)"

.PHONY: bench-history
bench-history: ## Fill a database with 10 million rows of history and time the API's queries (ARGS=1000000: fewer rows)
	scripts/stack up
	cargo build --release --locked --package floodway-store --example history
	$(WITH_STACK) for step in "fill $(ARGS)" ask drop; do target/release/examples/history $$step; done

.PHONY: k8s-check
k8s-check: ## Validate the Kubernetes manifests against committed schemas and against the code
	scripts/k8s-check

.PHONY: image
image: ## Build the container image (needs Docker)
	docker build --tag floodway:dev .

.PHONY: deny
deny: ## Check licences, advisories and sources of all dependencies (needs cargo-deny)
	cargo deny check
