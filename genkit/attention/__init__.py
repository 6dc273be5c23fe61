"""The attention methods: frozen settings with their mathematics on (q, k, v, site)."""
