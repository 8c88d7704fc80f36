# make run    the main job, live: every exec and exit of this host and its containers
# make test   everything that CI runs
# make bench  what being watched costs, beside other tools
# make build  target/release/namespan: one file, its BPF programs inside
# Both install what they lack on Debian; elsewhere, or without root, they say what to install.

CARGO ?= cargo
ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env)
BIN := target/release/namespan
# Further arguments of `namespan run`: make run ARGS='--containers --for 10s'
ARGS ?=
export PATH := $(HOME)/.cargo/bin:$(PATH)
export NAMESPAN_BIN := $(CURDIR)/$(BIN)
export NAMESPAN_ROTEL := $(CURDIR)/target/ci/rotel/rotel-agent

.PHONY: build run test lint unit root integration compose-test bench deps test-deps clean

build: deps
	$(CARGO) build --release --locked --package namespan

run: build
	$(ROOT) $(BIN) run --console table $(ARGS)

test: deps test-deps lint build unit root integration compose-test

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# Always the whole workspace, so that its dependencies are built once.
unit:
	$(CARGO) test --workspace --locked --lib --bins --test golden --test props

# On this kernel, as root.
root: build
	.ci/as-root $(CARGO) test --workspace --locked --test kernel -- --test-threads=1

# Real containers of every runtime and a real collector; a Docker daemon is started for them if none runs.
integration: build
	.ci/with-docker .ci/as-root $(CARGO) test --workspace --locked --test docker_runtime --test rotel \
	    --test containerd_runtime --test files_runtime --test host --test argv --test docker --test collector \
	    --test reload --test spool --test docker_first --test containerd --test podman --test runtimes --test hostile --test filters \
	    --test spans --test spans_bounds --test spans_context --test spans_run --test spans_docker \
	    --test uprobes --test uprobes_change --test uprobes_many -- --test-threads=1

# docker-compose.yml, with stand-ins for images that cannot be pulled.
compose-test: build
	.ci/with-docker $(ROOT) integration/compose/run.sh

# What being watched costs. No test: read the ratios. ROUNDS, EXECS and DRIZZLE (seconds) make it shorter or longer.
bench: build
	.ci/bench-deps
	$(CARGO) build --release --locked --package namespan-integration --bin nsbench
	$(ROOT) target/release/nsbench
	.ci/as-root $(CARGO) test --package namespan --locked --test kernel uprobe_cost -- --ignored --nocapture

deps:
	@.ci/deps

test-deps: deps
	@.ci/test-deps

clean:
	$(CARGO) clean
