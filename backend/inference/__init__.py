"""The loaded model, and answers from it."""
