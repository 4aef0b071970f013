"""Decoding of untrusted bytes, and the geometry of pictures before the network."""
