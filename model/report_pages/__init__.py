"""Reports as pages of one file each: their look, tables, curves and pictures."""
