#!/usr/bin/env bash
# The sampling half of recipes/latent.mk as a pipe: no file between the diffusion model and the decoder.
# Usage: recipes/latent-pipe.sh RUNS OUT [N]
set -euo pipefail
runs=$1 out=$2 n=${3:-64}
genkit sample ddim -m "$runs/ldm" -n "$n" --steps 50 --eta 0 --seed 7 -o - | genkit decode - -m "$runs/vae" -o "$out/"
