"""From raw scores to labels."""
