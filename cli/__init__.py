"""The `genkit` command."""
