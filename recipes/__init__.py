"""Recipes: settings of an experiment as TOML, pipelines as Makefiles and shell scripts."""
