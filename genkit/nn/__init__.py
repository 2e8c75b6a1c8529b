"""Layers: take plain numbers, know no schedule and no loss."""
