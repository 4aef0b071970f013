"""Layers, backbones and segmentation networks."""
