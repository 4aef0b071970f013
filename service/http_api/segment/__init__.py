"""The routes that segment a picture."""
