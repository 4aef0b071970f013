"""Losses, optimiser, precision, batch-norm calibration."""
