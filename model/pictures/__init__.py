"""From untrusted bytes to upright RGB, and the geometry before the network."""
