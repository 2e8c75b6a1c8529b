"""Figures by matplotlib: what is drawn and the numbers behind it; files belong to the caller."""
