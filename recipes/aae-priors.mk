# The plane of an adversarial autoencoder takes the shape of its prior: a normal, ten normals on a ring and a swiss
# roll, of which every class takes its part. One picture of three scatters, and pictures of each class from each prior.
# Usage: make -f recipes/aae-priors.mk                      MNIST
#        make -f recipes/aae-priors.mk DATA=digits STEPS=1000 DIR=aae-digits
DIR ?= aae-priors
DATA ?= mnist
TEST ?= $(DATA):test
STEPS ?= 2000
GENKIT ?= genkit
R := $(DIR)/runs
NAMES := gaussian mixture swiss-roll
# the normal has no parts
CLASSES := --class-conditional
CLASSES_gaussian :=
LABELS := --label 0-9
LABELS_gaussian :=

.PHONY: all
all: $(DIR)/latents.png $(NAMES:%=$(DIR)/%.png)

$(DIR)/latents.png: $(NAMES:%=$(DIR)/%.safetensors)
	$(GENKIT) plot latents $^ -o $@
$(DIR)/%.png: $(R)/%/done
	$(GENKIT) sample prior -m $(R)/$* -n 40 $(LABELS$(filter _gaussian,_$*)) -o $@
$(DIR)/%.safetensors: $(R)/%/done
	$(GENKIT) encode $(TEST) -m $(R)/$* -o $@
$(R)/%/done:
	$(GENKIT) train aae --data $(DATA) --latent 2 --prior $* $(CLASSES$(filter _gaussian,_$*)) --steps $(STEPS) -o $(@D) && touch $@

# a run folder holds a checkpoint long before training ends: `done` is made when it has
.DELETE_ON_ERROR:
.SECONDARY:
