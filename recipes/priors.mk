# What makes a code generate: the FID of images from a VAE's prior, from a mixture of normals fitted to the codes of the
# VAE and of a plain autoencoder, from the prior of an adversarial autoencoder, and from a GAN. Ends with OUT/table.csv.
# Usage: make -f recipes/priors.mk                             MNIST, codes of 16 units, 10,000 images each
#        make -f recipes/priors.mk DATA=digits SIZE=16 STEPS=500 GAN_STEPS=500 N=2048 K=10 DIR=small
DIR ?= priors
DATA ?= mnist
TEST ?= $(DATA):test
SIZE ?= 28
LATENT ?= 16
STEPS ?= 4000
GAN_STEPS ?= 6000
K ?= 50
N ?= 10000
SEED ?= 7
CLF ?= $(DIR)/runs/clf
GENKIT ?= genkit
R := $(DIR)/runs
O := $(DIR)/out
NAMES := vae vae-gmm ae-gmm aae gan
IMAGES := --data $(DATA) --size $(SIZE)
# another's classifier is taken as it is
READY := $(if $(filter $(R)/clf,$(CLF)),$(R)/clf/done,$(CLF)/model.safetensors)
DRAW = $(GENKIT) sample prior -n $(N) --seed $(SEED) -o $(@D)/

$(O)/table.csv: $(NAMES:%=$(O)/%.fid)
	@echo "images,fid" > $@
	@for m in $(NAMES); do f=$$(sed -n 's/.*"fid": \([0-9.e-]*\).*/\1/p' $(O)/$$m.fid); echo "$$m,$$f" >> $@; done
	@cat $@ >&2

$(O)/%.fid: $(O)/%/grid.png $(READY)
	$(GENKIT) eval-fid $(O)/$*/ $(TEST) --size $(SIZE) --features $(CLF) --json > $@

$(O)/vae/grid.png: $(R)/vae/done
	$(DRAW) -m $(R)/vae --prior own
$(O)/aae/grid.png: $(R)/aae/done
	$(DRAW) -m $(R)/aae
$(O)/gan/grid.png: $(R)/gan/done
	$(DRAW) -m $(R)/gan
$(O)/%-gmm/grid.png: $(R)/%/gmm.safetensors
	$(DRAW) -m $(R)/$* --prior $<
$(R)/%/gmm.safetensors: $(R)/%/done
	$(GENKIT) fit-prior $(R)/$* --kind gmm --components $(K) -o $@

$(R)/clf/done:
	$(GENKIT) train classifier $(IMAGES) -o $(R)/clf && touch $@
$(CLF)/model.safetensors:
	@echo "no classifier at $(CLF); train one: genkit train classifier $(IMAGES) -o $(CLF)" >&2; exit 2
$(R)/ae/done $(R)/vae/done $(R)/aae/done: $(R)/%/done:
	$(GENKIT) train $* $(IMAGES) --latent $(LATENT) --steps $(STEPS) -o $(@D) && touch $@
$(R)/gan/done:
	$(GENKIT) train gan $(IMAGES) --steps $(GAN_STEPS) -o $(@D) && touch $@

# a run folder holds a checkpoint long before training ends: `done` is made when it has
.DELETE_ON_ERROR:
.SECONDARY:
