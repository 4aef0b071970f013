"""The page at ``/``: static files, served without a build step and without another host."""
