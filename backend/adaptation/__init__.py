"""The thread that learns from each accepted region at once."""
