# A denoising autoencoder for each of three corruptions: what it gives back, in dB over what it was given, and a picture
# of originals, corrupted and restored: OUT/KIND.png.
# Usage: make -f recipes/denoise.mk                            MNIST
#        make -f recipes/denoise.mk DATA=digits SIZE=16 LATENT=8x8x8 STEPS=500 DIR=small
DIR ?= denoise
DATA ?= mnist
TEST ?= $(DATA):test
SIZE ?= 28
LATENT ?= 8x7x7
STEPS ?= 1500
GENKIT ?= genkit
KINDS := gaussian mask saltpepper
gaussian := gaussian:0.3
mask := mask:0.5
saltpepper := saltpepper:0.1

.PHONY: all
all: $(KINDS:%=$(DIR)/out/%.json)
	@cat $^ >&2
$(DIR)/out/%.json: $(DIR)/runs/%/done
	@mkdir -p $(DIR)/out
	$(GENKIT) reconstruct $(TEST) --size $(SIZE) -n 0 -m $(DIR)/runs/$* -o $(DIR)/out/$*.png --json > $@
$(DIR)/runs/%/done:
	$(GENKIT) train ae --data $(DATA) --size $(SIZE) --latent $(LATENT) --corrupt $($*) --steps $(STEPS) --warmup 100 -o $(@D) && touch $@

# a run folder holds a checkpoint long before training ends: `done` is made when it has
.DELETE_ON_ERROR:
.SECONDARY:
