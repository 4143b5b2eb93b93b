"""How the posterior is found: the E/M family, encoders, the amortised guide, training and evaluation."""
