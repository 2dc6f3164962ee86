"""Speed and memory, printed as medians. Nothing here decides whether a test passes."""
