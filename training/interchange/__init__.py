"""Data sets of other programs: brought in as a folder that a run learns from, and written for them."""
