"""Model families, one file each; `genkit.registry.find` imports them by name."""
