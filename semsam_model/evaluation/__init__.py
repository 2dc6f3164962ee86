"""Figures of a model on annotated photos."""
