"""Speed, memory and exactness of activations: alone, and in the training step of a whole ViT."""
