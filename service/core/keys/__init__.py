"""Keys of callers: who may do what, until when, and how much of it."""
