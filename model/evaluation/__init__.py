"""Metrics, protocols, score sums, confidence intervals, reports."""
