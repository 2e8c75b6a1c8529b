# Five autoencoders of 49 numbers or 49 tokens of 512 codes an image: what comes back, in dB and to a
# classifier's eye (reconstruction FID); and two more of FEW codes, which must leave something out:
# there a critic makes a difference. Ends with DIR/out/table.csv and a picture of each, DIR/out/MODEL/grid.png.
# Usage: make -f recipes/autoencoders.mk                       MNIST, 1,500 steps each
#        make -f recipes/autoencoders.mk DATA=digits SIZE=16 NUMBERS=1x4x4 TOKENS=16x4x4 STEPS=500 START=150 DIR=small
DIR ?= autoencoders
DATA ?= mnist
TEST ?= $(DATA):test
SIZE ?= 28
NUMBERS ?= 1x7x7
TOKENS ?= 16x7x7
STEPS ?= 1500
START ?= 500
CLF ?= $(DIR)/runs/clf
GENKIT ?= genkit
# the judges' weights, where not the defaults
JUDGE ?= --perceptual-weight 0.3
FEW ?= 32
R := $(DIR)/runs
O := $(DIR)/out
MODELS := ae vae aae vqvae vqgan vqvae-few vqgan-few
CODES := 512
CODES-few := $(FEW)
IMAGES := --data $(DATA) --size $(SIZE)
# another's classifier is taken as it is
READY := $(if $(filter $(R)/clf,$(CLF)),$(R)/clf/done,$(CLF)/model.safetensors)

$(O)/table.csv: $(MODELS:%=$(O)/%.fid) $(MODELS:%=$(O)/%.psnr)
	@echo "model,psnr,fid" > $@
	@for m in $(MODELS); do \
	  p=$$(sed -n 's/.*"psnr": \([0-9.]*\).*/\1/p' $(O)/$$m.psnr); f=$$(sed -n 's/.*"fid": \([0-9.e-]*\).*/\1/p' $(O)/$$m.fid); \
	  echo "$$m,$$p,$$f" >> $@; done
	@cat $@ >&2

$(O)/%.psnr: $(R)/%/done
	@mkdir -p $(O)
	$(GENKIT) reconstruct $(TEST) --size $(SIZE) -n 0 -m $(R)/$* -o $(O)/$*/ --json > $@
$(O)/%.fid: $(O)/%.psnr $(READY)
	$(GENKIT) eval-fid $(O)/$*/ $(TEST) --size $(SIZE) --features $(CLF) --json > $@

$(R)/clf/done:
	$(GENKIT) train classifier $(IMAGES) -o $(R)/clf && touch $@
$(CLF)/model.safetensors:
	@echo "no classifier at $(CLF); train one: genkit train classifier $(IMAGES) -o $(CLF)" >&2; exit 2
$(R)/ae/done $(R)/vae/done $(R)/aae/done: $(R)/%/done:
	$(GENKIT) train $* $(IMAGES) --latent $(NUMBERS) --steps $(STEPS) --warmup 100 -o $(@D) && touch $@
$(R)/vqvae/done $(R)/vqvae-few/done: $(R)/%/done:
	$(GENKIT) train vqvae $(IMAGES) --latent $(TOKENS) --codes $(CODES$(*:vqvae%=%)) --blocks 0 --steps $(STEPS) -o $(@D) && touch $@
# the classifier's eye is what the VQGAN is trained to please, too: compare by another one to be strict
$(R)/vqgan/done $(R)/vqgan-few/done: $(R)/%/done: $(READY)
	$(GENKIT) train vqgan $(IMAGES) --latent $(TOKENS) --codes $(CODES$(*:vqgan%=%)) --blocks 0 $(JUDGE) --disc-start $(START) --perceptual $(CLF) --steps $(STEPS) -o $(@D) && touch $@

# a run folder holds a checkpoint long before training ends: `done` is made when it has
.DELETE_ON_ERROR:
.SECONDARY:
