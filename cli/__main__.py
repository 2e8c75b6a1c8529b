"""`python -m genkit_cli`, which is what torchrun starts."""

from .main import run

run()
