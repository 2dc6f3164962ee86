"""The network, from pixels to mask logits, and the frame that it sees a photo in."""
