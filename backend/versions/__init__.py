"""Model versions on disk, and which one is live."""
