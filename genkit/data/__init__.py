"""Data sources: names, image folders, zips and latents files behind one interface."""
