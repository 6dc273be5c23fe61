"""The parts of a model folder as classes, and as networks without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, said
from genkit.models.check import read_part_config


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
    try:
        with init_empty_weights():
            if hasattr(kind, "from_config"):
                return kind.from_config(config).eval()
            return kind(kind.config_class.from_dict(config)).eval()
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ArtifactError(f"{folder / part / 'config.json'} makes no {kind.__name__}: {said(error)}") from error
