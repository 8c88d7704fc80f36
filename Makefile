# make run    the main job, live: every exec and exit of this host and its containers
# make test   everything that CI runs
# make fuzz   foreign bytes for every reader of Namespan's: SECONDS=60 for each, TARGETS='elf btf'
# make soak   an hour of everything at once, or MINUTES: no part of make test yet
# make vm     the root tests on older and newer kernels, in virtual machines: no part of make test yet
# make bench  what being watched costs, beside other tools
# make build  target/release/namespan: one file, its BPF programs inside
# make deb    target/package/: a Debian package; docs/install.md has the other ways
# They install what they lack on Debian; elsewhere, or without root, they say what to install.

CARGO ?= cargo
ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env)
BIN := target/release/namespan
# Further arguments of `namespan run`: make run ARGS='--containers --for 10s'
ARGS ?=
PACKAGE := target/package
export PATH := $(HOME)/.cargo/bin:$(PATH)
export NAMESPAN_BIN := $(CURDIR)/$(BIN)
export NAMESPAN_ROTEL := $(CURDIR)/target/ci/rotel/rotel-agent

.PHONY: build run test lint unit root fuzz soak vm integration compose-test package-test bench deps test-deps clean \
    pages sbom deb fuzz-test soak-test image-root reproduce

build: deps
	.ci/release build --release --locked --package namespan

run: build
	$(ROOT) $(BIN) run --console table $(ARGS)

test: deps test-deps lint build unit root fuzz-test integration compose-test package-test

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	target/ci/cargo-deny/cargo-deny --locked check bans licenses sources

# Always the whole workspace, so that its dependencies are built once.
unit:
	$(CARGO) test --workspace --locked --lib --bins --example pages --test golden --test props --test corpus

# With libFuzzer, on any compiler; no privilege is needed.
fuzz: deps
	SECONDS_PER_TARGET=$(or $(SECONDS),60) .ci/fuzz $(TARGETS)

fuzz-test:
	@$(MAKE) --no-print-directory fuzz SECONDS=3

# On this kernel, as root.
root: build
	.ci/as-root $(CARGO) test --workspace --locked --test kernel -- --test-threads=1

# On Debian's kernels, each in an emulated machine, from the mirror that apt is configured with; no privilege is needed.
# NAMESPAN_BLESS=1 make vm rewrites the table in docs/kernels.md.
vm: deps
	.ci/vm-deps
	$(CARGO) test --workspace --locked --test vm -- --nocapture

# Real containers of every runtime and a real collector; a Docker daemon is started for them if none runs.
integration: build
	.ci/with-docker .ci/as-root $(CARGO) test --workspace --locked --test docker_runtime --test rotel \
	    --test containerd_runtime --test files_runtime --test host --test argv --test docker --test collector \
	    --test reload --test spool --test attacks --test docker_first --test containerd --test podman --test runtimes --test hostile \
	    --test filters --test privileges \
	    --test spans --test spans_bounds --test spans_context --test spans_run --test spans_docker \
	    --test uprobes --test uprobes_change --test uprobes_many --test guard -- --test-threads=1

# MINUTES of load with outages and changes of settings: nothing lost, nothing twice, nothing left over.
soak: build
	$(CARGO) build --workspace --locked --bin nssoak
	.ci/with-docker $(ROOT) target/debug/nssoak

soak-test:
	@MINUTES=3 $(MAKE) --no-print-directory soak

# docker-compose.yml, with stand-ins for images that cannot be pulled.
compose-test: build
	.ci/with-docker $(ROOT) integration/compose/run.sh

# The Debian package, taken apart and installed into a folder; the unit's score.
package-test: deb
	$(ROOT) integration/package/run.sh

# Man pages and completions for shells.
pages: deps
	$(CARGO) build --workspace --locked --example pages
	target/debug/examples/pages $(PACKAGE)

# A bill of materials, and the notices of what is linked in.
sbom:
	.ci/notices $(PACKAGE)

# As old as its commit, so that it is the same bytes again.
deb: build pages sbom
	@.ci/package-deps
	rm -f $(PACKAGE)/*.deb
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) \
	    target/ci/cargo-deb/bin/cargo-deb --quiet --no-build --no-strip --package namespan --output $(PACKAGE)/

# What exporter/Dockerfile copies.
image-root: build
	.ci/image-root $(BIN) target/image

# Builds this commit twice, in two folders, and compares the bytes.
reproduce: deps
	.ci/reproduce

# What being watched costs. No test: read the ratios. ROUNDS, EXECS and DRIZZLE (seconds) make it shorter or longer.
bench: build
	.ci/bench-deps
	.ci/release build --release --locked --package namespan-integration --bin nsbench
	$(ROOT) target/release/nsbench
	.ci/as-root $(CARGO) test --package namespan --locked --test kernel uprobe_cost -- --ignored --nocapture

deps:
	@.ci/deps

test-deps: deps
	@.ci/test-deps

clean:
	$(CARGO) clean
