# `make help` lists the targets. Each is a script, so that it can be read and run without make.

PREFIX ?= /usr
SYSCONFDIR ?= /etc
UNITDIR ?= /lib/systemd/system
DESTDIR ?=
CARGO ?= cargo
TARGET_DIR := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
BIN := $(TARGET_DIR)/release/gitopsd

.DEFAULT_GOAL := build
.PHONY: help build demo lint test test-all test-boot bench bench-swap bench-path chaos audit install clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## the release binary
	scripts/install-deps build
	$(CARGO) build --release --locked

demo: ## the main job on real parts, as a story (root; under a minute after the build)
	scripts/demo

lint: ## format, lints, documentation, dependencies, scripts, unit
	scripts/install-deps build
	scripts/lint

test: ## everything that a change has to pass: lint, all tests, the demo (root)
	scripts/install-deps test
	scripts/lint
	scripts/test

test-all: export GITOPSD_TEST_ALL = 1
test-all: test test-boot ## test, and everything that takes too long for every change
	PROPTEST_CASES=10000 $(CARGO) test --locked --features failpoints --test plan
	$(CARGO) test --locked --features failpoints -- --ignored

test-boot: ## on systemd as first process: a booted container and a virtual machine, each booted twice (root; minutes)
	scripts/test-boot

bench: ## swap, start, pull and idle numbers on this machine, beside the peers (root)
	scripts/bench
	scripts/bench-deploy
	scripts/bench-hundred
	scripts/bench-engine
	scripts/bench-pull
	scripts/bench-unpack

bench-swap: ## swaps under load: ten kinds of clients, six kinds of programs, and the peers; Swarm in a virtual machine (root; 100 minutes)
	scripts/bench-swap
	scripts/test-boot swap

bench-path: ## throughput and latency through the rules, beside the peers (root)
	scripts/bench-path

chaos: ## 100 swaps while things go wrong, by a seed (root; about ten minutes)
	scripts/chaos

audit: ## known vulnerabilities of dependencies (needs cargo-deny and the network)
	$(CARGO) deny --locked check advisories

install: ## binary, unit, default configuration, man pages, completions under $(DESTDIR)$(PREFIX)
	@test -x $(BIN) || { echo "$(BIN) is missing: run make build first" >&2; exit 1; }
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/gitopsd
	install -D -m 644 systemd/gitopsd.service $(DESTDIR)$(UNITDIR)/gitopsd.service
	install -D -m 644 systemd/gitopsd.slice $(DESTDIR)$(UNITDIR)/gitopsd.slice
	install -D -m 644 systemd/gitopsd-webhook.socket $(DESTDIR)$(UNITDIR)/gitopsd-webhook.socket
	install -D -m 644 systemd/gitopsd-sync.service $(DESTDIR)$(UNITDIR)/gitopsd-sync.service
	install -D -m 644 systemd/gitopsd-sync.path $(DESTDIR)$(UNITDIR)/gitopsd-sync.path
	sed -i 's#^ExecStart=/usr/bin/#ExecStart=$(PREFIX)/bin/#' $(DESTDIR)$(UNITDIR)/gitopsd.service $(DESTDIR)$(UNITDIR)/gitopsd-sync.service
	test -e $(DESTDIR)$(SYSCONFDIR)/gitopsd/gitopsd.toml || install -D -m 600 packaging/gitopsd.toml $(DESTDIR)$(SYSCONFDIR)/gitopsd/gitopsd.toml
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
	  $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(BIN) man $(DESTDIR)$(PREFIX)/share/man/man1
	$(BIN) completions bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/gitopsd
	$(BIN) completions zsh > $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_gitopsd
	$(BIN) completions fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/gitopsd.fish

clean: ## what was built
	$(CARGO) clean
