"""Runs segmentation models: engines, scheduling, HTTP and command line."""
