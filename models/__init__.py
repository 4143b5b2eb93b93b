"""What we believe about scenes: one generative story per module, and the decoders they need. No optimisation."""
