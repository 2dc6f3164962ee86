"""Training a network from annotated photos."""
