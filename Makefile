# What can be done here. `make help` prints the lines with two hashes.
# Everything runs on a clean clone: Go 1.26, a C compiler (SQLite, NVML) and Python 3.9 or newer.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
PYTHON  ?= python3
BIN     := bin

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
DATE    := $(shell git show -s --format=%cI HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)

# Tools run at a pinned version and stay out of go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

TEST_TIMEOUT ?= 8m
TEST_FLAGS   ?=
FUZZ_SECONDS ?= 10
SIMTEST_FLAGS ?= -rapid.checks=150

##@ Use

.PHONY: demo
demo: ## Run the whole thing on a real speech recording; ends by itself (DEMO_KEEP=1 keeps serving)
	@if [ -x demo/demo.sh ]; then exec ./demo/demo.sh; fi; \
	echo 'make demo is not built yet: it will build cjmd, start it in a private directory and' >&2; \
	echo 'recognise a speech recording with live partial results.' >&2; exit 1

.PHONY: build
build: ## Build bin/cjmd and bin/cjm-ctl
	@mkdir -p $(BIN)
	CGO_ENABLED=1 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

##@ Check

.PHONY: test
# The Python suite is a part of both; once is enough.
test: export CJM_PYTHON_SUITE = apart
test: test-go test-python ## All tests: Go with the race detector, then Python

.PHONY: test-go
# -count=1: many tests run the built daemon, whose sources the cache of results does not watch.
test-go: ## Go tests with the race detector (TEST_FLAGS adds flags)
	$(GO) test -race -count=1 -timeout $(TEST_TIMEOUT) $(TEST_FLAGS) ./...

.PHONY: test-python
test-python: ## Python tests, with the standard library alone
	PYTHON='$(PYTHON)' ./scripts/python-tests.sh

.PHONY: check
check: fmt-check generate-check vet lint test ## What CI runs: format, generated files, vet, lint, import rules, all tests

.PHONY: vet
vet: ## go vet
	$(GO) vet ./...

.PHONY: lint
lint: ## staticcheck, at a pinned version
	$(GO) run $(STATICCHECK) ./...

.PHONY: fmt
fmt: ## Format the Go sources
	@git ls-files -z -co --exclude-standard '*.go' | xargs -0 -r gofmt -s -w

.PHONY: fmt-check
fmt-check: ## Fail when a Go file is not formatted
	@bad=$$(git ls-files -z -co --exclude-standard '*.go' | xargs -0 -r gofmt -s -l); \
	if [ -n "$$bad" ]; then printf 'not formatted (make fmt):\n%s\n' "$$bad" >&2; exit 1; fi

.PHONY: generate
generate: ## Regenerate what is generated (API types, state diagrams)
	$(GO) generate ./...

.PHONY: generate-check
generate-check: ## Fail when generated files differ from what their sources give
	GO='$(GO)' ./scripts/generate-check.sh

.PHONY: house
house: ## Import directions, package comments, lengths of files and functions
	$(GO) test -count=1 -v ./test/house/

.PHONY: fuzz
fuzz: ## Every fuzz target for FUZZ_SECONDS (default 10), Go and Python
	GO='$(GO)' PYTHON='$(PYTHON)' FUZZ_SECONDS='$(FUZZ_SECONDS)' ./scripts/fuzz.sh

# A target whose folder is not there yet says what it will do and fails.
# $(call have,FOLDER,what it will do)
have = @test -d $(1) || { echo 'make $@ is not built yet: it will $(2).' >&2; exit 1; }

.PHONY: e2e
e2e: ## The whole daemon, through its API, as its users use it
	$(call have,test/e2e,start the real daemon with real plugins and drive it through its API)
	$(GO) test -race -count=1 -timeout 15m ./test/e2e/...

.PHONY: fault
fault: ## Kill the daemon at random moments under load; nothing may be lost or left behind
	$(call have,test/fault,kill the daemon 200 times under load and compare what it promised with what is left)
	$(GO) test -count=1 -timeout 30m -tags fault -v ./test/fault/...

.PHONY: simtest
simtest: ## New random machines, jobs and faults against the simulator (SIMTEST_FLAGS, default -rapid.checks=150)
	$(GO) test -count=1 -timeout 30m -run Random ./internal/sched/simtest -rapid.seed=0 $(SIMTEST_FLAGS)

.PHONY: systemd-test
systemd-test: ## The service under a real systemd
	$(call have,test/systemd,install the units and run the service under a real systemd)
	./test/systemd/run.sh

.PHONY: vm-test
vm-test: ## The package in a virtual machine that boots
	$(call have,test/vm,boot a virtual machine and install and remove the package there)
	./test/vm/run.sh

.PHONY: ecosystem
ecosystem: ## Published plugins of the Python predecessor, unchanged
	$(call have,test/ecosystem,install published plugins and run them unchanged)
	./test/ecosystem/run.sh

##@ Measure

.PHONY: bench
bench: ## All side-by-side benchmarks
	$(call have,bench/cmd,run every benchmark beside its raw limit and write bench/results)
	$(GO) run ./bench/cmd -out bench/results

.PHONY: bench-quick
bench-quick: ## The short benchmarks, as a table and bench/results/quick.json
	$(call have,bench/cmd,run the short benchmarks beside their raw limits and write bench/results/quick.json)
	$(GO) run ./bench/cmd -quick -out bench/results

##@ Deliver

.PHONY: sdk
sdk: ## Wheel and source package of the Python SDK
	$(call have,sdk/python/packaging,build the wheel and the source package of the Python SDK)
	PYTHON='$(PYTHON)' ./sdk/python/packaging/build.sh

.PHONY: deb
deb: ## Packages for Debian and for RPM systems, into dist/
	$(call have,deploy/deb/build,build the Debian package with units and completions)
	./deploy/deb/build/run.sh

.PHONY: gpu-bundle
gpu-bundle: ## One archive that tests everything on a machine with a GPU
	$(call have,test/gpu,pack binaries and tests into one archive for a machine with a GPU)
	./test/gpu/bundle.sh

##@ Keep house

.PHONY: clean
clean: ## Remove what was built here
	rm -rf $(BIN) dist .demo

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
