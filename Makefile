# SPDX-License-Identifier: Apache-2.0
# make demo [IMAGE=path]   three sites on this machine, the main job
# make test                every test; needs about half an hour on two cores
# make bench [QUICK=1]     metadata against Glance's SQL, the geo store against
#                          its file store; results in .cache/bench
# make kubo                an IPFS node for the tests and the lab, in
#                          .cache/kubo; needs Go
# make venv                the environment that the demo uses, in .venv-lab

PYTHON ?= python3
# Not .venv: tox writes a file of that name.
VENV := .venv-lab
STAMP := $(VENV)/.installed

.PHONY: demo test long bench venv images config kubo clean

$(STAMP): setup.cfg requirements.txt tools/requirements.txt
	@$(PYTHON) -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: Python 3.11 or later with venv is needed: apt-get install python3 python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --upgrade pip
	$(VENV)/bin/pip install -q -r tools/requirements.txt -e .
	@touch $@

venv: $(STAMP)

demo: $(STAMP)
	$(VENV)/bin/python tools/demo $(if $(IMAGE),--image '$(IMAGE)')

kubo:
	tools/kubo/build

test:
	@tools/kubo/build || command -v ipfs >/dev/null || [ -n "$$GLANCE_GEO_IPFS" ] || \
	  echo "make: no Kubo: the IPFS tests will be skipped"
	$(PYTHON) -m venv .venv-tox
	.venv-tox/bin/pip install -q 'tox>=4'
	.venv-tox/bin/tox

long:
	$(PYTHON) -m venv .venv-tox
	.venv-tox/bin/pip install -q 'tox>=4'
	.venv-tox/bin/tox -e long

bench: $(STAMP)
	$(VENV)/bin/pip install -q -r tools/bench-requirements.txt
	$(VENV)/bin/python -W ignore tools/bench metadata --out .cache/bench $(if $(QUICK),--quick)
	$(VENV)/bin/python -W ignore tools/bench store --out .cache/bench $(if $(QUICK),--quick)

images: $(STAMP)
	$(VENV)/bin/python tools/make-images --dir .cache/images

config: $(STAMP)
	$(VENV)/bin/oslo-config-generator --config-file etc/config-generator.conf

clean:
	rm -rf $(VENV) .venv-tox .tox .cache
