"""The admin frontend: versions, evaluations, drain, metrics. It has its own port and always needs a token."""
