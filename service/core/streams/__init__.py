"""The rules of frame streams."""
