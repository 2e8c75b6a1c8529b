# What each half of the ELBO does to a plane of codes: only reconstruction, only KL, both. One picture of three scatters.
# Usage: make -f recipes/vae-triple.mk                      MNIST, codes of two units
#        make -f recipes/vae-triple.mk DATA=digits STEPS=1000 DIR=triple-digits
DIR ?= triple
DATA ?= mnist
TEST ?= $(DATA):test
STEPS ?= 5000
GENKIT ?= genkit
R := $(DIR)/runs
TRAIN = $(GENKIT) train vae --data $(DATA) --arch mlp --latent 2 --steps $(STEPS)
NAMES := only-reconstruction only-kl both

$(DIR)/latents.png: $(NAMES:%=$(DIR)/%.safetensors)
	$(GENKIT) plot latents $^ -o $@

# draws of q(z|x), not its means: only they show the holes between the codes, and the cloud of the KL
$(DIR)/%.safetensors: $(R)/%/done
	$(GENKIT) encode $(TEST) -m $(R)/$* --sample -o $@

$(R)/only-reconstruction/done:
	$(TRAIN) --beta 0 -o $(@D) && touch $@
$(R)/only-kl/done:
	$(TRAIN) --recon-weight 0 -o $(@D) && touch $@
$(R)/both/done:
	$(TRAIN) -o $(@D) && touch $@

# a run folder holds a checkpoint long before training ends: `done` is made when it has
.DELETE_ON_ERROR:
.SECONDARY:
