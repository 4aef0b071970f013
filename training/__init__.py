"""Makes segmentation models: data, losses, optimisation, checkpoints, artifacts."""
