"""Weights files: header, loading and saving, the published checkpoints."""
