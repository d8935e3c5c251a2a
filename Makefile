# make help lists what there is.
GO         ?= $(or $(shell command -v go),/usr/local/go/bin/go)
PREFIX     ?= /usr/local
# before the first tag: 0.0.0-COMMITS-gHASH, as git describe would have it
VERSION    ?= $(or $(shell git describe --tags --dirty 2>/dev/null),0.0.0-$(shell git rev-list --count HEAD 2>/dev/null)-g$(or $(shell git describe --always --dirty 2>/dev/null),unknown))
PROGRAM    ?= build/wg-quickns
ARCHES     ?= amd64 arm64 arm riscv64
PACKAGES   ?= build/packages
BENCHFLAGS ?= -n 7

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0
SCRIPTS     = $(shell git ls-files -co --exclude-standard | xargs grep -lsE '^\#!/bin/(ba|busybox )?sh')
BUILDFLAGS  = -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'

export GO
export PATH := $(PATH):$(dir $(GO))
export CGO_ENABLED = 0

.PHONY: help build install cross deb rpm demo test lint vuln bench man clean
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

build: ## build/wg-quickns
	$(GO) build $(BUILDFLAGS) -o $(PROGRAM) ./cmd/wg-quickns

install: build ## the program, its manual and completions under $(DESTDIR)$(PREFIX)
	install -D -m 755 $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/wg-quickns
	install -D -m 644 cmd/wg-quickns/completion/wg-quickns.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/wg-quickns
	install -D -m 644 cmd/wg-quickns/completion/wg-quickns.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_wg-quickns
	install -D -m 644 cmd/wg-quickns/completion/wg-quickns.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/wg-quickns.fish
	for schema in man/*.schema.json; do install -D -m 644 $$schema $(DESTDIR)$(PREFIX)/share/wg-quickns/$${schema##*/} || exit; done
	for unit in systemd/*.service systemd/*.target; do \
	  install -D -m 644 $$unit $(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/} && \
	  sed -i 's|/usr/bin/wg-quickns|$(PREFIX)/bin/wg-quickns|' $(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/} || exit; done
	for page in $(wildcard man/*.[1-9]); do to=$(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/} && \
	  install -D -m 644 $$page $$to && sed -i 's|/usr/local/|$(PREFIX)/|' $$to || exit; done

cross: ## the program for amd64, arm64, arm and riscv64 (ARCHES), below build/cross, vetted
	for arch in $(ARCHES); do export GOARCH=$$arch GOARM=6 && $(MAKE) build PROGRAM=build/cross/$$arch/wg-quickns && $(GO) vet ./... || exit; done

deb: cross ## packages for Debian and its kin, in build/packages
rpm: cross ## packages for Fedora and its kin, in build/packages
deb rpm:
	for arch in $(ARCHES); do systemd/package/pack $@ $$arch $(VERSION) $(PACKAGES) || exit; done

demo: build ## a full tunnel between two namespaces of its own, up and down
	./test/demo/run

test: build ## everything: lint, unit and namespace tests here, the same and more on Debian's kernel and with its systemd under qemu
	./test/install git mandoc shellcheck
	$(MAKE) lint
	./test/run

lint: man ## gofmt, go mod tidy, vet, staticcheck, govulncheck, shellcheck, mandoc
	@unformatted=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }
	$(GO) mod tidy -diff
	$(GO) vet -tags lab,faults,systemd ./...
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) run $(STATICCHECK) -tags lab,faults,systemd ./...
	shellcheck $(SCRIPTS)
	@$(MAKE) --no-print-directory vuln

vuln: ## known vulnerabilities; a database out of reach is a loud warning and no failure
	@out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1) && echo "$$out" || { echo "$$out"; case $$out in \
	  *'no such host'*|*'network is unreachable'*|*'i/o timeout'*|*'connection refused'*) \
	    echo 'WARNING: NOT CHECKED for known vulnerabilities: vuln.go.dev is out of reach from here' >&2 ;; \
	  *) exit 1 ;; esac; }

bench: build ## speed against the reference wg-quick, side by side; BENCHFLAGS='-n ROUNDS -full -run ROWS'
	./test/reference/install
	./test/install iproute2 nftables procps strace
	$(GO) build -o build/wireguard-go golang.zx2c4.com/wireguard
	WG_QUICKNS=$(CURDIR)/build/wg-quickns $(GO) run ./test/bench $(BENCHFLAGS)

man: ## lint of the manual
	$(if $(wildcard man/*.[1-9]),mandoc -T lint -W warning $(wildcard man/*.[1-9]))

clean: ## removes build/
	rm -rf build
