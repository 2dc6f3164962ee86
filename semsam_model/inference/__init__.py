"""A prompt on a photo, or a photo alone -> named, ranked masks."""
