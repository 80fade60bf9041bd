"""NeuralSanitizer finds, shows, removes and disproves backdoors in neural networks."""
