"""Torch models: backbones, engines, model folders. Only this part of the package, training and export import torch."""
