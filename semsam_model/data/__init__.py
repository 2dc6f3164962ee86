"""Annotated photos to train and evaluate on."""
