# The main job on embedded data, a few minutes on two CPU cores: classifier, VAE, diffusion, samples, interpolation, FID.
# Usage: make -f recipes/digits.mk        (results in digits/; run again to continue)
DIR ?= digits
SIZE ?= 16
R := $(DIR)/runs
O := $(DIR)/out

$(O)/samples.png: $(R)/clf/done $(O)/prior.png $(O)/ddim/grid.png $(O)/interpolation.png $(O)/fid.json
	cp $(O)/ddim/grid.png $@
	@echo "look at $@, $(O)/interpolation.png and $(O)/prior.png; the score is in $(O)/fid.json" >&2

$(R)/clf/done:
	genkit train classifier --data digits --size $(SIZE) --steps 300 -o $(R)/clf && touch $@
$(R)/vae/done:
	genkit train vae --data digits --size $(SIZE) --latent 16 --steps 1500 -o $(R)/vae && touch $@
$(R)/ddpm/done:
	genkit train ddpm --recipe digits-ddpm --size $(SIZE) -o $(R)/ddpm && touch $@
$(O)/prior.png: $(R)/vae/done
	genkit sample prior -m $(R)/vae -n 64 -o $@
$(O)/ddim/grid.png: $(R)/ddpm/done
	genkit sample ddim -m $(R)/ddpm -n 512 --steps 50 -o $(O)/ddim/
$(O)/interpolation.png: $(R)/ddpm/done
	genkit interpolate 1 2 --label 2,7 -m $(R)/ddpm -n 10 --rows 4 -o $@
$(O)/fid.json: $(O)/ddim/grid.png $(R)/clf/done
	genkit eval-fid $(O)/ddim/ digits --size $(SIZE) --features $(R)/clf --json > $@
	@cat $@ >&2

# a run folder holds a checkpoint long before training ends: `done` is made when it has
.DELETE_ON_ERROR:
