"""Readers of annotation formats, one a file."""
