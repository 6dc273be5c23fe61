"""Several subjects that stay themselves over several pictures."""
