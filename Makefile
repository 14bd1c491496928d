# Another make stops further down; this line makes it say why first.
_ != [ "$(word 1,gnu)" = gnu ] || echo "GNU make is needed: type gmake (brew install make; pkg install gmake)" >&2

# The front door. `make` alone prints the targets. Every target only calls a command that you can type yourself.

DATA ?= data
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
# Targets come from the manifests: a TOML more is a data set more. MANIFESTS=/folder: more of them, in /folder/datasets.
export MANIFESTS
KNOWN_VARIANTS := $(filter-out defaults,$(shell sed -n 's/^\[\(.*\)\]$$/\1/p' manifests/variants.toml))
TOMLS := $(wildcard manifests/datasets/*.toml $(if $(MANIFESTS),$(MANIFESTS)/datasets/*.toml))
DATASETS := $(sort $(notdir $(TOMLS:.toml=)))
# set/variant for each variant that `make SET` prepares, and for each whose flow it computes
listed = $(shell awk -F'"' '/^$(1) = / {set = FILENAME; gsub(/.*\/|\.toml$$/, "", set); for (i = 2; i <= NF; i += 2) print set "/" $$i}' $(TOMLS))
USUAL := $(call listed,variants)
FLOWS := $(call listed,flow)
of = $(patsubst $(1)/%,%,$(filter $(1)/%,$(2)))

# A value as one word of the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'

# VENV= points at an environment that exists and is left alone; without it .venv is made, once.
ifeq ($(VENV),)
override VENV := .venv
READY := $(VENV)/.ready
else
READY := existing-environment
endif
PY := $(call quoted,$(VENV)/bin/python)

.DEFAULT_GOAL := help
.PHONY: help setup demo data-benchmark augment-benchmark test test-all check existing-environment

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Data sets, each in its usual variants (quirks and access: docs/datasets.md):"
	@awk -F'"' 'function say() {if (set) printf "  make %-16s %-30s %s\n", set, title, list} \
	  /^title = / {say(); set = FILENAME; gsub(/.*\/|\.toml$$/, "", set); title = $$2} \
	  /^variants = / {gsub(/variants = |[],"[]/, ""); list = $$0} \
	  /^flow = / {for (i = 2; i <= NF; i += 2) list = list " " $$i "-flow"} END {say()}' $(TOMLS)
	@echo "One variant: make SET-VARIANT, such as k700-320p, with a VARIANT of: $(filter-out harm-%,$(KNOWN_VARIANTS))"
	@echo "As folders of JPEG files: make SET-VARIANT-frames, such as gym99-256p-frames"
	@echo "Its optical flow: make SET-VARIANT-flow, such as k400-256p-flow (docs/flow.md)"
	@echo
	@echo "  RAW=/videos         videos that are on disk already         ANNOTATIONS=FILE|DIR  official lists"
	@echo "  SPLIT=val           only this split                         LABEL_ORDER=mmaction2 numbers of the classes"
	@echo "  SOURCE=cvdf,youtube where from                             LIMIT=200 a trial  JOBS=$(JOBS) DATA=$(DATA)"
	@echo "  METHOD=dis PARAMS= WEIGHTS= CONTAINER=mp4 DEVICE=cuda of the flow   MANIFESTS=/folder     data sets of your own"
	@echo "  VENV=/path          uses an existing environment instead of .venv"

setup: $(READY) ## make .venv with the tested versions (about 3 minutes, 7 GB)

$(VENV)/.ready: pyproject.toml constraints.txt
	@sh scripts/setup.sh $(VENV)

existing-environment:
	@sh scripts/setup.sh --existing $(call quoted,$(VENV))

demo: $(READY) ## no data needed: generate, prepare, train, test, fuse, compare, report (5 minutes)
	@$(PY) -m demo

# Training and testing many networks: what is compared, with how many seeds. Stopped, the same command goes on.
BENCHMARK = @$(PY) -m models.benchmark $(1) $(if $(DATASET),$(call quoted,$(DATASET)),$(error DATASET= is needed, such as DATASET=k400)) \
  $(call quoted,$(or $(MODEL),slowonly_r50_4x16)) --data-root $(call quoted,$(DATA)) --seeds $(or $(SEEDS),3) \
  $(if $(RECIPE),--recipe $(call quoted,$(RECIPE))) $(if $(VARIANTS),--variants $(call quoted,$(VARIANTS))) $(if $(AUGMENTS),--augments $(call quoted,$(AUGMENTS))) \
  $(if $(RAW),--raw $(call quoted,$(RAW))) $(if $(LABELS),--labels $(call quoted,$(LABELS))) $(if $(ANNOTATIONS),--annotations $(call quoted,$(ANNOTATIONS))) \
  $(if $(OUT),--out $(call quoted,$(OUT)))

data-benchmark: $(READY) ## which copy to train on: DATASET= MODEL= RECIPE= SEEDS=3 VARIANTS=340x256,320p,256p
	$(call BENCHMARK,data)

augment-benchmark: $(READY) ## the same for AUGMENTS=randaugment,mixup,cutmix on one of VARIANTS=256p
	$(call BENCHMARK,augment)

test: $(READY) ## the tests (under 10 minutes on 2 cores)
	@$(PY) -m pytest -n $(JOBS) -m "not slow"

test-all: $(READY) ## the slow tests too, and those for a GPU
	@$(PY) -m pytest -n $(JOBS)
	@$(PY) -m pytest -m needs_cuda

check: $(READY) ## format, lint, types, tests
	@$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m mypy && $(MAKE) --no-print-directory test VENV=$(call quoted,$(VENV))

# 5 means "finished, and some clips are missing or broken": for a partial copy of a data set that is the normal end.
PREPARE = @$(PY) -m datakit prepare $(1) $(foreach variant,$(2),--variant $(variant)) --data-root $(call quoted,$(DATA)) --jobs $(JOBS) \
  $(if $(RAW),--raw $(call quoted,$(RAW))) $(if $(SOURCE),--source $(SOURCE)) $(if $(SPLIT),--split $(SPLIT)) $(if $(ANNOTATIONS),--annotations $(call quoted,$(ANNOTATIONS))) \
  $(if $(LABEL_ORDER),--label-order $(call quoted,$(LABEL_ORDER))) $(if $(LIMIT),--limit $(LIMIT)) $(if $(ALLOW_DAMAGED),--allow-damaged $(ALLOW_DAMAGED)) || { code=$$?; [ $$code -eq 5 ] || exit $$code; }

# Two of them: gym99-256p-flow makes the videos first.
FLOW = @$(PY) -m datakit flow $(1) --variant $(2) --data-root $(call quoted,$(DATA)) $(if $(filter cuda,$(DEVICE)),,--jobs $(JOBS)) \
  $(if $(METHOD),--method $(METHOD)) $(if $(PARAMS),--params $(PARAMS)) $(if $(WEIGHTS),--weights $(call quoted,$(WEIGHTS))) $(if $(CONTAINER),--container $(CONTAINER)) $(if $(DEVICE),--device $(DEVICE)) \
  $(if $(SPLIT),--split $(SPLIT)) $(if $(LIMIT),--limit $(LIMIT)) || { code=$$?; [ $$code -eq 5 ] || exit $$code; }

define TARGETS
.PHONY: $(1) $(foreach variant,$(KNOWN_VARIANTS),$(1)-$(variant) $(1)-$(variant)-frames $(1)-$(variant)-flow)
$(1): $$(READY)
	$$(call PREPARE,$(1),$(call of,$(1),$(USUAL)))
$(foreach variant,$(call of,$(1),$(FLOWS)),$(call RULE,FLOW,$(1),$(variant)))
$(foreach variant,$(KNOWN_VARIANTS),$(call TARGET,$(1),$(variant)))
$(if $(call of,$(1),$(FLOWS)),$(call FLOW_TARGET,$(1)))
endef
define TARGET

$(1)-$(2): $$(READY)
$(call RULE,PREPARE,$(1),$(2))

$(1)-$(2)-frames: $$(READY)
$(call RULE,PREPARE,$(1),$(2)-frames)

$(1)-$(2)-flow: $(1)-$(2)
$(call RULE,FLOW,$(1),$(2))
endef
define FLOW_TARGET

.PHONY: $(1)-flow
$(1)-flow: $(foreach variant,$(call of,$(1),$(FLOWS)),$(1)-$(variant)-flow)
endef
define RULE

	$$(call $(1),$(2),$(3))
endef
$(foreach set,$(DATASETS),$(eval $(call TARGETS,$(set))))
