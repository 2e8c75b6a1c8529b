# Latent diffusion end to end: images -> VAE -> latents -> diffusion -> pictures -> FID.
# Usage: make -f recipes/latent.mk                                    MNIST, 4x7x7 latents
#        make -f recipes/latent.mk DATA=cifar10 TEST=cifar10:test VAE=cifar-vae LDM=cifar-ldm DIR=cifar GUIDANCE=2
DIR ?= latent
DATA ?= mnist
TEST ?= mnist:test
VAE ?= mnist-vae
LDM ?= mnist-ldm
N ?= 10000
SEED ?= 7
GUIDANCE ?= 1
R := $(DIR)/runs

$(DIR)/fid.json: $(DIR)/img/grid.png $(R)/clf/done
	genkit eval-fid $(DIR)/img/ $(TEST) --features $(R)/clf --json > $@
	@cat $@ >&2

$(R)/clf/done:
	genkit train classifier --data $(DATA) -o $(R)/clf && touch $@
$(R)/vae/done:
	genkit train vae --recipe $(VAE) --data $(DATA) -o $(R)/vae && touch $@
$(DIR)/z.safetensors: $(R)/vae/done
	genkit encode $(DATA) -m $(R)/vae -o $@
$(R)/ldm/done: $(DIR)/z.safetensors
	genkit train ddpm --recipe $(LDM) --data $(DIR)/z.safetensors -o $(R)/ldm && touch $@
$(DIR)/samples.safetensors: $(R)/ldm/done
	genkit sample ddim -m $(R)/ldm -n $(N) --steps 50 --eta 0 --guidance $(GUIDANCE) --seed $(SEED) --batch-size 250 -o $@
$(DIR)/img/grid.png: $(DIR)/samples.safetensors $(R)/vae/done
	genkit decode $(DIR)/samples.safetensors -m $(R)/vae --batch-size 250 -o $(DIR)/img/

# a run folder holds a checkpoint long before training ends: `done` is made when it has
.DELETE_ON_ERROR:
