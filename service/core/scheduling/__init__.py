"""Who goes next, who is refused, what waits how long."""
