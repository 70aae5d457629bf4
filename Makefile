PYTHON   ?= python3
VENV     ?= .venv
DEMO     ?= demo
SETTINGS ?= segwatch.toml
TARGET   ?= dev
AS_OF    ?=
PORT     ?= 8090
SEGMENTS ?= 27
DAYS     ?= 1000
SEED     ?= 7
# Google Cloud: needed by the targets infra-* and image, and by create and destroy with TARGET=prod.
PROJECT_ID   ?=
BUCKET_NAME  ?=
ENV          ?= dev
REGION       ?= us-central1
STATE_BUCKET ?= $(BUCKET_NAME)-tfstate
TAG          ?= $(shell git rev-parse --short=12 HEAD)
TERRAFORM    ?= terraform
GCLOUD       ?= gcloud
PYTEST_OPTIONS ?=

.DEFAULT_GOAL := help
SHELL := /bin/sh
BIN := $(abspath $(VENV))/bin
# Compilers and browsers leave files in TMPDIR; here they go with the environment.
export TMPDIR := $(abspath $(VENV))/tmp
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SEGWATCH := $(BIN)/segwatch --settings $(SETTINGS) --target $(TARGET)
AS_OF_OPTION := $(if $(AS_OF),--as-of $(AS_OF))
# What the page is of.
SHOWN = $(firstword $(wildcard $(SETTINGS) $(DEMO)/segwatch.toml))
# prod needs Google's libraries too.
INSTALLED := $(VENV)/installed-$(if $(filter prod,$(TARGET)),cloud,base)

# ${PROJECT_ID} and the others in segwatch.toml. An empty one stays unset, so that segwatch names what is missing.
ifneq ($(PROJECT_ID),)
export PROJECT_ID
endif
ifneq ($(BUCKET_NAME),)
export BUCKET_NAME
endif
export ENV REGION TAG

INFRA := infra/envs/$(ENV)
IMAGE := $(REGION)-docker.pkg.dev/$(PROJECT_ID)/segwatch-$(ENV)/segwatch
DEPLOYER := segwatch-deployer-$(ENV)@$(PROJECT_ID).iam.gserviceaccount.com
# What the image is made of: a tag that names a revision must not hold anything else.
IMAGE_SOURCES := Dockerfile .dockerignore pyproject.toml setup.py constraints.txt src
INFRA_VARIABLES := -var project_id=$(PROJECT_ID) -var bucket_name=$(BUCKET_NAME) -var region=$(REGION)
needs = $(foreach name,PROJECT_ID BUCKET_NAME,$(if $($(name)),,$(error $(name) is empty: make $(MAKECMDGOALS) TARGET=$(TARGET) PROJECT_ID=my-project BUCKET_NAME=my-bucket ENV=dev)))$(if $(wildcard infra/envs/$(ENV)/main.tf),,$(error ENV is $(ENV), it must be dev, test or prod))$(if $(shell command -v $(1) 2>/dev/null),,$(error $(1) is not installed: install it or name it with $(2)=))

.PHONY: help demo test check infra-check format create data train infer run report ui destroy clean
.PHONY: cloud-ready infra-init infra-plan infra-apply infra-destroy image docs-drawing

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15
	@echo; echo "Variables: VENV DEMO SETTINGS TARGET AS_OF PORT SEGMENTS DAYS SEED PROJECT_ID BUCKET_NAME ENV REGION PYTEST_OPTIONS"

NATIVE := setup.py $(wildcard src/segwatch/core/native/*)

$(VENV)/installed-base: pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit("segwatch needs Python 3.11 to 3.13, " + sys.executable + " is " + sys.version.split()[0] + ": set PYTHON=") if not (3, 11) <= sys.version_info[:2] <= (3, 13) else 0'
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(TMPDIR)
	$(BIN)/pip install --quiet --no-cache-dir -c constraints.txt -e '.[ui]'
	@touch $@

$(VENV)/installed-cloud: $(VENV)/installed-base
	$(BIN)/pip install --quiet --no-cache-dir -c constraints.txt -e '.[gcp,kfp]'
	@touch $@

$(VENV)/installed-test: $(VENV)/installed-base
	$(BIN)/pip install --quiet --no-cache-dir -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(BIN)/pip install --quiet --no-cache-dir -c constraints.txt -e '.[dev]'
	@touch $@

# An environment of their own: bqemulator needs another duckdb. Its extensions are found in its home directory.
$(VENV)/installed-emulators: tests/emulators.txt | $(VENV)/installed-base
	$(PYTHON) -m venv $(VENV)/emulators
	$(VENV)/emulators/bin/pip install --quiet --no-cache-dir -r tests/emulators.txt
	HOME=$(abspath $(VENV))/emulators $(VENV)/emulators/bin/python -c 'from duckdb_extensions import import_extension as i; i("spatial"); i("icu")'
	@touch $@

demo: $(VENV)/installed-base ## Generate data, train, score 60 days, write the report
	@$(BIN)/python examples/demo.py $(DEMO)

test: $(VENV)/installed-test $(VENV)/installed-emulators ## Run the tests
	EMULATORS=$(abspath $(VENV))/emulators $(BIN)/python -m pytest -n 4 $(PYTEST_OPTIONS)

check: $(VENV)/installed-dev ## Lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# In an environment of their own: they bring other versions of what segwatch needs.
$(VENV)/installed-infra: infra/requirements.txt
	$(PYTHON) -m venv $(VENV)/infra
	@mkdir -p $(TMPDIR)
	$(VENV)/infra/bin/pip install --quiet --no-cache-dir -r $<
	@touch $@

infra-check: $(VENV)/installed-infra ## Lint infra/ and the Dockerfile, plan an empty project
	$(if $(shell command -v $(TERRAFORM) 2>/dev/null),,$(error $(TERRAFORM) is not installed: install it or name it with TERRAFORM=))
	$(TERRAFORM) fmt -check -recursive infra
	$(VENV)/infra/bin/checkov --skip-download --quiet --compact --directory infra
	$(VENV)/infra/bin/hadolint Dockerfile
	$(VENV)/infra/bin/python infra/schema/validate.py

format: $(VENV)/installed-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(SETTINGS): | $(VENV)/installed-base
	$(BIN)/segwatch --settings $@ init

ifeq ($(TARGET),prod)
create: cloud-ready $(INSTALLED) | $(SETTINGS)
	$(MAKE) infra-apply
	$(MAKE) image
	$(SEGWATCH) create
	$(SEGWATCH) compile --upload
else
create: $(INSTALLED) | $(SETTINGS) ## Make the tables and the registry; in prod the cloud's resources and the image first
	$(SEGWATCH) create
endif

data: $(if $(filter prod,$(TARGET)),$(INSTALLED),create) ## Insert the generated metric
	$(SEGWATCH) data insert --segments $(SEGMENTS) --days $(DAYS) --seed $(SEED)

train: $(INSTALLED) | $(SETTINGS) ## Train on the periods before AS_OF (today)
	$(SEGWATCH) train $(AS_OF_OPTION)

infer: $(INSTALLED) | $(SETTINGS) ## Score the last complete period before AS_OF (today)
	$(SEGWATCH) infer $(AS_OF_OPTION)

run: $(INSTALLED) | $(SETTINGS) ## The daily job: train if due, then score
	$(SEGWATCH) run $(AS_OF_OPTION)

report: $(INSTALLED) | $(SETTINGS) ## Write segwatch-report.html
	$(SEGWATCH) report

ui: $(INSTALLED) ## Show the live page of SETTINGS, or of the demo where that file is missing, on PORT
	$(if $(SHOWN),,$(error there is no $(SETTINGS) and no $(DEMO)/segwatch.toml: make demo, or make create))
	@$(BIN)/segwatch --settings $(SHOWN) --target $(TARGET) ui --port $(PORT)

ifeq ($(TARGET),prod)
destroy: cloud-ready $(INSTALLED) | $(SETTINGS)
	$(SEGWATCH) destroy
	$(MAKE) infra-destroy
else
destroy: $(INSTALLED) | $(SETTINGS) ## Remove what segwatch made, after asking; in prod then the cloud's resources
	$(SEGWATCH) destroy
endif

# Before anything is installed or made.
cloud-ready:
	@: $(call needs,$(TERRAFORM),TERRAFORM)$(call needs,$(GCLOUD),GCLOUD)

infra-init: ## Prepare Terraform for ENV, with its state in STATE_BUCKET
	@: $(call needs,$(TERRAFORM),TERRAFORM)
	$(TERRAFORM) -chdir=$(INFRA) init -input=false -reconfigure -backend-config=bucket=$(STATE_BUCKET) -backend-config=prefix=segwatch/$(ENV)

infra-plan: infra-init ## Show what would be changed in the project
	$(TERRAFORM) -chdir=$(INFRA) plan $(INFRA_VARIABLES)

infra-apply: infra-init ## Make or change the cloud's resources, after asking
	$(TERRAFORM) -chdir=$(INFRA) apply $(INFRA_VARIABLES)

infra-destroy: infra-init ## List the cloud's resources, ask, and remove them
	$(TERRAFORM) -chdir=$(INFRA) destroy $(INFRA_VARIABLES)

image: ## Build the committed revision's image with Cloud Build
	@: $(call needs,$(GCLOUD),GCLOUD)$(if $(shell git status --porcelain -- $(IMAGE_SOURCES)),$(error the image would not be that of $(TAG): commit the changes of $(IMAGE_SOURCES) first))
	$(GCLOUD) builds submit . --project=$(PROJECT_ID) --region=$(REGION) --config=infra/cloudbuild.yaml --gcs-source-staging-dir=gs://$(BUCKET_NAME)-$(ENV)/builds --substitutions=_IMAGE=$(IMAGE):$(TAG),_REVISION=$(TAG),_DEPLOYER=$(DEPLOYER)

docs-drawing: docs/infrastructure.svg ## Draw docs/infrastructure.svg anew (needs graphviz)

docs/infrastructure.svg: docs/infrastructure.dot
	dot -Tsvg $< -o $@

clean: ## Remove the environment and the demo
	rm -rf $(VENV) $(DEMO)
