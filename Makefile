# Nacre. `make help` lists what there is; every target works from a fresh clone and does only what is out of date.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS   += --no-print-directory

TARGET  := x86_64-unknown-linux-gnu
BIN     := target/$(TARGET)/release
DIST    := target/dist
SHARE   := $(DIST)/share/nacre
CACHE   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/nacre
PREFIX  ?= /usr/local
RECIPE  ?= minimal
RECIPES := $(sort $(wildcard rootfs-recipes/*.toml))
LOCK    := rootfs-recipes/packages.lock

# Everything that a Debian machine with git, make and Rust lacks. qemu-utils is left out on purpose: a backported one
# conflicts with Debian 12's qemu-system-x86.
PACKAGES := gcc libc6-dev libseccomp-dev pkg-config \
            linux-source-6.12 flex bison bc libelf-dev xz-utils lz4 zstd rsync \
            squashfs-tools erofs-utils e2fsprogs systemd-boot-efi ca-certificates \
            qemu-system-x86 skopeo docker-registry openssl busybox-static iproute2 apache2-utils gpg gpg-agent runc crun \
            podman conmon containerd containernetworking-plugins prometheus protobuf-compiler umoci cryptsetup-bin fdisk ovmf xfsprogs curl python3-venv systemd

# A static binary runs in a guest that has no libraries. Only with an explicit target do build scripts stay dynamic. Packed relocations are three
# hundred kilobytes less to load at boot and to keep in memory. Where the sources lie must not be seen in what is built.
STATIC := RUSTFLAGS="-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs \
          --remap-path-prefix=$(CURDIR)=/nacre --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo" \
          cargo build --locked --release --target $(TARGET)

say = @printf '\033[1m==>\033[0m %s\n' "$(1)"
# Copies only what changed, so that what depends on it stays up to date.
put = @mkdir -p $(dir $(2)); cmp -s $(1) $(2) || install -m $(3) $(1) $(2)

build = $(DIST)/bin/nacre-image build $(1) --locked --agent $(DIST)/bin/nacre-agent --kernel $(SHARE)/vmlinux --out $(SHARE) \
        --crates $(SHARE) --cargo-lock Cargo.lock

# What a program is linked from, for the images' bills of materials.
crates = @mkdir -p $(SHARE); cargo tree --locked --target $(TARGET) --edges normal,no-proc-macro --prefix none --format '{p}' -p $(1) \
         | sed 's/ (.*//' | LC_ALL=C sort -u > $(SHARE)/$(1).crates

.PHONY: help setup kernel image images reproduce lock agent host run test test-unit test-vm bench soak fmt lint install clean

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-10s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install what is missing from Debian's packages (prints the list first)
	@missing=$$(for p in $(PACKAGES); do \
	    [ "$$(dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || echo $$p; done); \
	command -v cargo >/dev/null || { echo "setup: cargo is missing: install Rust 1.95 or newer with rustup" >&2; exit 1; }; \
	[ -n "$$missing" ] || exit 0; \
	echo "==> Debian packages to install:" $$missing; \
	cmd="apt-get install --yes --no-install-recommends $$(echo $$missing)"; \
	if [ "$$(id -u)" != 0 ]; then \
	    echo "setup: run this once, then repeat make:"; echo "    sudo sh -c 'apt-get update && $$cmd'"; exit 1; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$cmd -qq >/dev/null

agent: setup ## Build the guest agent, one static binary
	$(call say,agent: one static binary)
	@$(STATIC) -p nacre-agent --bin nacre-agent
	$(call put,$(BIN)/nacre-agent,$(DIST)/bin/nacre-agent,755)
	$(call crates,nacre-agent)

host: setup ## Build the host's programs: nacre, nacre-image, and the engines' command lines
	$(call say,host: nacre and its tools)
	@$(STATIC) -p nacre-shim -p nacre-image -p nacre-pull -p nacre-jail --bins
	$(call put,$(BIN)/nacre,$(DIST)/bin/nacre,755)
	$(call put,$(BIN)/containerd-shim-nacre-v2,$(DIST)/bin/containerd-shim-nacre-v2,755)
	$(call put,$(BIN)/nacre-image,$(DIST)/bin/nacre-image,755)
	$(call put,$(BIN)/nacre-pull,$(DIST)/bin/nacre-pull,755)
	$(call crates,nacre-pull)
	$(call put,$(BIN)/nacre-jail,$(DIST)/bin/nacre-jail,755)

kernel: host ## Build the guest kernel from Debian's source (once; cached by content)
	$(call say,kernel: Debian's linux-source-6.12 with kernel-config/)
	@$(DIST)/bin/nacre-image kernel --config-dir kernel-config --lock $(LOCK) --out $(SHARE)

image: agent kernel ## Build the guest image of rootfs-recipes/$(RECIPE).toml, from the packages that are locked
	$(call say,image: rootfs-recipes/$(RECIPE).toml)
	@$(call build,rootfs-recipes/$(RECIPE).toml)

images: agent kernel ## Build the guest images of all recipes
	$(call say,images: rootfs-recipes/)
	@$(foreach recipe,$(RECIPES),$(call build,$(recipe));)

reproduce: images ## Build everything once more as another user, elsewhere, on one processor, and compare (KEEP_KERNEL=1 spares the kernel)
	@image-builder/reproduce.sh $(if $(KEEP_KERNEL),--keep-kernel)

lock: host ## Move the lock of packages and of the kernel's source on to what Debian has today
	@$(DIST)/bin/nacre-image lock --update $(RECIPES)

run: image ## Boot a VM that pulls a demo image from a registry of its own and runs it
	@cargo build --locked --quiet -p nacre-tests --bin nacre-demo
	@target/debug/nacre-demo --dist $(DIST)

test: test-unit test-vm ## Run all tests

test-unit: setup ## Run the tests that need no VM
	$(call say,tests without a VM)
	@cargo build --locked --quiet -p nacre-agent -p nacre-pull -p nacre-jail --bins
	@cargo test --locked --workspace -- --skip vm_

test-vm: images ## Run the tests against real guests
	$(call say,tests against real guests)
	@NACRE_DIST=$(abspath $(DIST)) cargo test --locked -p nacre-tests -- vm_

bench: images ## Measure sizes, boot, memory and speed beside named peers (ONLY=prefix for a part)
	@cargo build --locked --quiet --release -p nacre-tests --bin nacre-bench
	@NACRE_DIST=$(abspath $(DIST)) target/release/nacre-bench --dist $(DIST) $(if $(ONLY),--only $(ONLY))

soak: agent ## Have containers live random lives for 20 minutes, and see that nothing is left (MINUTES=n for another time)
	@cargo build --locked --quiet --release -p nacre-tests --bin nacre-soak
	@target/release/nacre-soak --dist $(DIST) $(if $(MINUTES),--minutes $(MINUTES))

fmt: ## Format the code
	@cargo fmt --all

lint: setup ## Check format, lints and, where cargo-deny is installed, licences
	@cargo fmt --all -- --check
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --offline --locked check bans licenses sources; \
	else echo "skipped: licences and bans: cargo-deny is not installed (cargo install cargo-deny)"; fi

install: image ## Install programs and guest under PREFIX (/usr/local)
	$(call say,install: $(DESTDIR)$(PREFIX))
	@cd $(DIST) && find . -type f ! -name '.*' -exec install -D {} $(DESTDIR)$(PREFIX)/{} \;

clean: ## Remove what was built here (the cache in ~/.cache/nacre stays)
	@cargo clean --quiet
