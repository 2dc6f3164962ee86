"""Learning from single accepted masks, without training the network."""
