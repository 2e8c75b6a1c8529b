"""Losses over a batch."""
