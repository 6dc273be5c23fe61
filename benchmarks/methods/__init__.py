"""Attention methods judged side by side on the toy models: density, mass kept, time, likeness to dense, the judge."""
