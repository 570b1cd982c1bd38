"""Torch models: backbones, engines, model folders. Only this part of the package (and training, export) imports torch."""
