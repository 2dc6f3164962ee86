"""A trained network learns from corrections."""
