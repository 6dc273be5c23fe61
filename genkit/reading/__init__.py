"""Reading files and numbers of any origin: bounded in bytes, depth, items and digits, with one clear error otherwise.

Everything genkit reads goes through this room or, for pictures, video and sound, through :mod:`genkit.media`. What a
value must be is said in :mod:`genkit.schema`.
"""

from __future__ import annotations

from genkit.reading.data import parse_json, read_json, read_toml, read_yaml
from genkit.reading.files import file_digest, open_file, read_bytes, read_text, regular, user_path
from genkit.reading.numbers import number, rate, whole
from genkit.reading.strength import path_and_strength

__all__ = [
    "file_digest",
    "number",
    "open_file",
    "parse_json",
    "path_and_strength",
    "rate",
    "read_bytes",
    "read_json",
    "read_text",
    "read_toml",
    "read_yaml",
    "regular",
    "user_path",
    "whole",
]
