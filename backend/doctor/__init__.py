"""A project's connection to this backend: made, and checked from end to end."""
