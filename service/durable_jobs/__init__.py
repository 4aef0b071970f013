"""Evaluation jobs that survive their workers: the core's jobs on DBOS, over SQLite or Postgres."""
