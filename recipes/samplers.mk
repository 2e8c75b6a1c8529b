# What samplers, spacings, variances and guidance do to one class-conditional model: tables (table.csv) and labelled
# pictures (grid.png) under OUT. Needs a diffusion model and a classifier of the same data:
#   genkit train ddpm --recipe mnist-ddpm -o runs/ddpm; genkit train classifier --data mnist -o runs/clf
# Usage: make -f recipes/samplers.mk [all|eta|spacing|nfe|variance|guidance] RUN=runs/ddpm CLF=runs/clf REAL=mnist:test
RUN ?= runs/ddpm
CLF ?= runs/clf
REAL ?= mnist:test
N ?= 2048
OUT ?= sweeps
STEPS ?= 10,20,50,100
CALLS ?= 5,8,10,12,15,20,30,50
HEUN ?= 3,5,6,8,10,15,25
CHAIN ?= 250
GENKIT ?= genkit
COMMON = $(REAL) -m $(RUN) --features $(CLF) -n $(N)

.PHONY: all eta spacing nfe variance guidance
all: eta spacing nfe variance guidance

# the table of the DDIM paper: few steps want eta 0, and eta 1 suffers most
eta:
	$(GENKIT) sweep ddim $(COMMON) --over "steps=$(STEPS) eta=0,0.2,0.5,1" -o $(OUT)/eta
# the paper's CIFAR-10 numbers are of quadratic spacing
spacing:
	$(GENKIT) sweep ddim $(COMMON) --over "steps=$(STEPS) spacing=trailing,leading,quadratic" -o $(OUT)/spacing
# quality against network evaluations; Heun's steps cost two
nfe:
	$(GENKIT) sweep ddim $(COMMON) --over "steps=$(CALLS)" -o $(OUT)/nfe-ddim
	$(GENKIT) sweep dpmpp $(COMMON) --over "steps=$(CALLS)" -o $(OUT)/nfe-dpmpp
	$(GENKIT) sweep heun $(COMMON) --over "steps=$(HEUN)" -o $(OUT)/nfe-heun
# "why not simply take the mean?": zero is the mean. A model of the recipe mnist-iddpm adds VARIANCES=...,learned
VARIANCES ?= large,small,zero
variance:
	$(GENKIT) sweep ddpm $(COMMON) --over "steps=$(CHAIN) variance=$(VARIANCES)" -o $(OUT)/variance
# how much of the class, and what it costs in variety
guidance:
	$(GENKIT) sweep dpmpp $(COMMON) --over "guidance=0,1,2,4" -o $(OUT)/guidance
