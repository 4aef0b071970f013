"""Splits, pictures, sampling, augmentation."""
