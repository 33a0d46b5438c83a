"""From PyTorch to ONNX. The modules here import torch, so that only `graphopt.export` and its verb import them."""
