"""Autoencoders: encoder + bottleneck + decoder."""
