"""Shipped models, where a model name leads, and whether a model folder is whole."""

from __future__ import annotations

from genkit.models.check import check_folder, check_safetensors, fingerprint
from genkit.models.registry import DEFAULT_MODEL, Location, locate, shipped, verify_checksums, write_checksums
from genkit.models.sidecar import Sidecar, read_sidecar

__all__ = [
    "DEFAULT_MODEL",
    "Location",
    "Sidecar",
    "check_folder",
    "check_safetensors",
    "fingerprint",
    "locate",
    "read_sidecar",
    "shipped",
    "verify_checksums",
    "write_checksums",
]
