# `make demo` shows RVS, `make test` proves it. Both install what they need, on Debian as root.

.PHONY: help demo test unit loom e2e fuzz test-metal lint build release man deb test-debian13 bench-build bench gate clean install-packages

# Where cargo builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Always the whole workspace, and a choice of what is run: another choice of packages is another one of features, for which cargo builds
# everything once more.
NEXTEST := cargo nextest run --config-file tests/nextest.toml --workspace
# The programs in namespaces and machines; BUILT=1 takes those that the tests have left.
BINS = $(if $(BUILT),,cargo build --quiet -p rvs -p rvs-tests --bins)
LOOM := RUSTFLAGS="--cfg loom -Ctarget-cpu=x86-64-v3" cargo test -p dataplane --release --target-dir $(TARGET)/loom

help:
	@echo "make demo        a cluster in network namespaces, shown in a minute (ARGS=--keep leaves it up)"
	@echo "make test        everything: unit, property, loom and end-to-end tests"
	@echo "make fuzz        libFuzzer, for a minute a target (SECONDS=60), with what cargo install cargo-fuzz brings"
	@echo "make test-metal  the Debian package on an emulated machine with PCI NICs, by docs/bare-metal.md"
	@echo "make test-debian13 builds and tests on Debian 13, in a root of its own; half an hour"
	@echo "make release     the fastest build: target/release/rvs, DPDK linked statically"
	@echo "make deb         Debian package: target/debian, linked with Debian's DPDK"
	@echo "make man         manual pages and completions: target/man"
	@echo "make bench       every promise of perf/PROMISES.md that one machine can keep, in a few minutes"
	@echo "make gate        instructions per packet, against the record"
	@echo "make lint        fmt, clippy, docs, licences"

install-packages:
	@.ci/install

demo: install-packages
	$(BINS)
	$(TARGET)/debug/rvs-demo $(ARGS)

build: install-packages
	cargo build -p rvs

release: install-packages
	cargo build --release -p rvs --features static

# What a package puts into share/man/man1 and into the shells' directories for completions.
man: build
	$(TARGET)/debug/rvs man $(TARGET)/man/man1
	for shell in bash zsh fish; do $(TARGET)/debug/rvs completions $$shell > $(TARGET)/man/rvs.$$shell; done

# The package installs Debian's own DPDK with it, whose drivers are loaded at run time. RVS=PROGRAM packs what is built.
deb: install-packages
	$(if $(RVS),,cargo build --release -p rvs)
	configs/debian/build $(or $(RVS),$(TARGET)/release/rvs) $(TARGET)/debian

test: unit loom e2e

# Unit and property tests, and those of DPDK on virtual devices.
unit: install-packages
	$(NEXTEST) -E 'not package(rvs-tests)'

# Every interleaving of workers that meet at a flow's first packets.
loom:
	$(LOOM) --test table_loom

# The built program in network namespaces, with real clients and servers.
e2e: install-packages
	$(NEXTEST) -E 'package(rvs-tests)'

# libFuzzer on stable Rust: without sanitizers, but it sees which input goes where. What it finds to be new stays in target/.
SECONDS = 60
fuzz: install-packages
	for target in packet sequence modes config; do \
		mkdir -p $(TARGET)/corpus/$$target && \
		cargo fuzz run --fuzz-dir tests/fuzz --features libfuzzer --sanitizer none $$target \
			$(TARGET)/corpus/$$target tests/fuzz/corpus/$$target -- -max_total_time=$(SECONDS) || exit; \
	done

# docs/bare-metal.md, walked on an emulated machine with PCI NICs behind an IOMMU; takes some minutes.
test-metal: install-packages
	@.ci/install .ci/packages.metal
	$(BINS)
	$(TARGET)/debug/rvs-metal $(ARGS)

# As root; downloads what it needs by this machine's own package sources. Takes long, and longer the first time.
test-debian13:
	tests/debian.sh trixie

lint: install-packages
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --quiet
	cargo deny --log-level error check bans licenses sources

# rvs-perf and the program that it measures, as they are released.
bench-build: install-packages
	cargo build --quiet --release -p rvs -p rvs-perf --features rvs/static,rvs-perf/static

bench: bench-build
	$(TARGET)/release/rvs-perf bench $(ARGS)

# The same on every machine; a deliberate change is recorded by
# `target/release/rvs-perf instructions --record perf/instructions.toml`, in a commit that says why.
gate: bench-build
	$(TARGET)/release/rvs-perf instructions --check perf/instructions.toml

clean:
	cargo clean
