"""The admin frontend: versions, evaluations, drain, metrics; on its own port, never without a token."""
