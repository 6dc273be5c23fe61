"""Cases of unets models."""
