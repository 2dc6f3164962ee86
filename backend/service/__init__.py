"""What the backend does, without HTTP."""
