"""A trained network for the use of others: timm, plain weights, ONNX, torch.export; each reloaded before it counts."""
