"""Mask engines other than ours, and how one is opened by name."""
