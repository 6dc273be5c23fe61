"""The parts of a model folder as classes, and as networks without values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, UnsupportedError, said
from genkit.models.check import read_part_config
from genkit.pipelines.fits import check_numbers
from genkit.reading.files import place

_LACKING = re.compile(r"requires the ([\w-]+) library")
_PROCESSOR = re.compile(r"(?:Processor|FeatureExtractor)(?:Fast|Pil)?$")


@contextmanager
def errors_only() -> Iterator[None]:
    """Diffusers says nothing but errors within the block: what else it remarks is known, or told otherwise."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def class_named(library: str | None, name: str | None) -> Any:
    """The class of an entry of ``model_index.json`` in Diffusers, transformers or a pipeline's own module; None when
    it is elsewhere."""
    import diffusers
    import transformers

    if library is None or name is None:
        return None
    if library == "diffusers":
        return getattr(diffusers, name, None)
    room = transformers if library == "transformers" else getattr(diffusers.pipelines, library, None)
    return getattr(room, name, None)


def empty_part(folder: Path, part: str, kind: Any) -> Any:
    """A part of a class of Diffusers or transformers on the meta device, as its configuration says.

    Raises:
        ArtifactError: a configuration that its class refuses.
    """
    from accelerate import init_empty_weights

    config = read_part_config(folder, part)
    check_numbers(folder / part / "config.json", config)
    try:
        with init_empty_weights():
            if hasattr(kind, "from_config"):
                return kind.from_config(config).eval()
            return kind(kind.config_class.from_dict(config)).eval()
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ArtifactError(f"{folder / part / 'config.json'} makes no {kind.__name__}: {said(error)}") from error


def check_processors(folder: Path, parts: Mapping[str, tuple[str, str]]) -> None:
    """Make what prepares pictures for encoders of Transformers and hold it against the packages that it needs.

    Args:
        folder: of the pipeline.
        parts: its parts, by (library, class).

    Raises:
        UnsupportedError: a package that is not installed. ArtifactError: files that make no processor.
    """
    for part, (library, name) in parts.items():
        kind = class_named(library, name) if library == "transformers" else None
        if kind is None or not _PROCESSOR.search(name):
            continue
        try:
            with errors_only():
                kind.from_pretrained(str(folder / part), local_files_only=True)
        except ImportError as error:
            lacking = _LACKING.search(str(error))
            package = "a package" if lacking is None else f"the package {lacking[1].lower()}"
            how = said(error) if lacking is None else f"install {lacking[1].lower()}"
            raise UnsupportedError(
                f"{place(folder / part)} ({name}) needs {package}, which is missing: {how}"
            ) from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise ArtifactError(f"{folder / part} cannot be loaded as {name}: {said(error)}") from error
