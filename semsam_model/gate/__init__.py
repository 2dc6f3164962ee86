"""Whether a fine-tuned model is better than the one it comes from."""
