"""Masks as pixels: their codecs, outlines and geometry, and where an annotator would click."""
