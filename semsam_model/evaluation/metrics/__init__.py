"""Metrics as pure functions of masks and label maps."""
