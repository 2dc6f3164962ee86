"""Predictions for whatever lacks one."""
