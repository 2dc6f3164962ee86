"""Corrections as files."""
