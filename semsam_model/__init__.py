"""Semantic-SAM in plain PyTorch: an image once, prompts many times, six masks a prompt."""
