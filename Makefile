# Everything a developer does here is one of these; "make" alone lists them.
# Needed: Go. The tests install the rest where they may, and say so where not.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS      = -s -w -X main.version=$(VERSION)

# The product; the end-to-end tests, which may use what the product must not;
# and the example, which is an app like anybody's.
MODULES := . e2e deploy/examples/go

# What tests call besides Go: ip for network namespaces, a C compiler for the
# race detector, strace to make a disk fail, curl and bash to run exports,
# shellcheck and systemd-analyze for what is in deploy/, the languages of the
# example apps, the clients that apps call the outside with.
PACKAGES := iproute2 gcc libc6-dev strace curl shellcheck systemd python3 python3-flask gunicorn ruby ruby-rack puma socat \
            git default-jdk-headless python3-requests
# Servers that stand in front of a relay, or that apps call through it. Where systemd
# runs, installing them would start them.
ifeq ($(wildcard /run/systemd/system),)
PACKAGES += nginx-light caddy postgresql
endif

FUZZTIME ?= 20s
SOAK     ?= 10
# How long one run of soak kills the relay, the agent and the app at random.
CRASH    ?= 2m
# How long an agent lies idle in a soak before it is measured.
IDLE     ?= 10m
# What soak repeats, as for go test -run: the tests in which something breaks.
SOAK_RUN ?= Kill|Link|Cable|Outage|Successor|ReachedNoApp|Surviv|Cut|FullDisk|DiskThatFails|No202|ForgetsTheOrder|BeforeItCommits

##@ Build and try

.PHONY: build
build: ## both binaries, static, into bin/
	@mkdir -p bin
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o bin/ ./cmd/...

.PHONY: demo
demo: ## a relay, an app and two webhooks on this machine; ARGS=--once ends by itself, DEMO_PORT=8081 moves it
	@echo "building (about a minute the first time) …"
	@$(MAKE) --no-print-directory -s build
	@cd deploy/examples/go && CGO_ENABLED=0 go build -buildvcs=false -o ../../../bin/demo/shop .
	@CGO_ENABLED=0 go build -buildvcs=false -o bin/demo/demo ./deploy/demo
	@exec bin/demo/demo $(ARGS)

.PHONY: bench
bench: ## how fast, next to a direct connection and a plain proxy; ARGS=… goes to the harness
	cd e2e && go run ./bench $(ARGS)

##@ Check

.PHONY: test
test: started setup lint static unit e2e tour ## everything that must pass, in one go
	@echo "== all passed in $$(( $$(date +%s) - $$(cat bin/.started) )) s"

.PHONY: started
started:
	@mkdir -p bin && date +%s > bin/.started

.PHONY: setup
setup: # what the tests need, where it may be installed
	@echo "== setup: $(PACKAGES)"
	@if dpkg -s $(PACKAGES) >/dev/null 2>&1; then \
		echo "all there"; \
	elif ! command -v apt-get >/dev/null; then \
		echo "not installed: this is not Debian; tests that need what is missing are skipped and say so"; \
	elif [ "$$(id -u)" != 0 ]; then \
		echo "not installed: not root; tests that need what is missing are skipped and say so"; \
	else \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES); \
	fi

.PHONY: lint
lint: format vet staticcheck tidy ## gofmt, go vet, staticcheck, go mod tidy; changes nothing

.PHONY: format
format:
	@echo "== gofmt"
	@found=$$(find . \( -name node_modules -o -name '.?*' -o -path ./bin \) -prune -o -name '*.go' -print0 | xargs -0 gofmt -l); \
	if [ -n "$$found" ]; then echo "not formatted, run gofmt -w on:"; echo "$$found"; exit 1; fi

.PHONY: vet
vet:
	@for m in $(MODULES); do echo "== go vet: $$m"; (cd $$m && go vet ./...); done
	@echo "== go vet: the agent as on macOS"
	GOOS=darwin CGO_ENABLED=0 go vet ./cmd/postern ./agent/... ./protocol

.PHONY: staticcheck
staticcheck:
	@for m in $(MODULES); do echo "== staticcheck: $$m"; (cd $$m && go run $(STATICCHECK) ./...); done

# Only go.mod is judged, and -e goes on past what cannot be had: tidy also wants
# the checksums of what the tests of our dependencies import, and we never build
# those. That go.sum has what we do build, every other step shows.
.PHONY: tidy
tidy:
	@for m in $(MODULES); do \
		echo "== go mod tidy: $$m"; \
		diff=$$(cd $$m && go mod tidy -e -diff 2>&1) || true; \
		if grep -q '^+++ tidy/go.mod' <<<"$$diff"; then echo "$$diff"; exit 1; fi; \
	done

.PHONY: static
static: # the binaries need no C library, and the product builds where there is only Go
	@echo "== build without cgo"
	CGO_ENABLED=0 go build ./cmd/...

.PHONY: unit
unit: ## unit tests, with the race detector where there is a C compiler
	@echo "== unit tests"
	@if command -v "$$(go env CC)" >/dev/null; then \
		CGO_ENABLED=1 go test -race ./... && \
		go test -run TestAQuotaIsSharedFairly ./relay/egress; \
	else \
		echo "no C compiler, so without the race detector"; \
		go test ./...; \
	fi
	@cd deploy/examples/go && go test ./...

.PHONY: e2e
e2e: ## end-to-end tests of the real binaries
	@echo "== end-to-end tests"
	cd e2e && go test -count=1 -timeout=14m ./... # a cached result would be of binaries built before

.PHONY: tour
tour: # the demo is what newcomers see first, so it must work
	@echo "== demo"
	@DEMO_PORT=0 $(MAKE) --no-print-directory demo ARGS=--once

##@ Check longer

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME=20s
	@for m in . e2e; do \
		(cd $$m && go test -list '^Fuzz' ./... | \
			awk '/^Fuzz/ { names[++n] = $$1 } $$1 == "ok" { for (i = 1; i <= n; i++) print $$2, names[i]; n = 0 }' | \
			while read -r pkg name; do \
				echo "== $$pkg $$name"; \
				go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
			done); \
	done

.PHONY: soak
soak: ## the end-to-end tests of faults SOAK=10 times; SOAK_RUN=… picks others
	cd e2e && POSTERN_E2E_CRASH=$(CRASH) go test -count=$(SOAK) -timeout=0 -failfast -run '$(SOAK_RUN)' .
	cd e2e && POSTERN_IDLE=$(IDLE) go test -count=1 -timeout=30m -v -run TestAnIdleAgentStaysSmall .

##@ Besides

.PHONY: clean
clean: ## remove what was built
	rm -rf bin

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
