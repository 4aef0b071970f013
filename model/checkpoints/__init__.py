"""Weights of other programs: recognise, unpickle in a process of its own, convert."""
