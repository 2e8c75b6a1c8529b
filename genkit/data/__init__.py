"""Data sources: names, image folders, zips and latents files behind one interface."""

from .open import open_source

__all__ = ["open_source"]
