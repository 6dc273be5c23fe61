"""The denoisers of a folder as modules without values: every parameter is on the meta device."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

from genkit.errors import ArtifactError, UnsupportedError, UsageError, escaped, explain, said, shortened
from genkit.models.check import parts_of, read_index, read_part_config
from genkit.pipelines.fits import check_numbers
from genkit.reading.files import place, user_path

#: Parts of a pipeline that are not denoisers.
_OTHERS = ("vae", "vqvae", "vqgan", "scheduler", "controlnet", "vocoder", "connectors", "adapter")


def models_in(folder: str | Path, model_class: str | None = None) -> dict[str, Any]:
    """The denoisers of a pipeline's folder, or the model of a model's folder, without values. No weights are read.

    Args:
        folder: a folder with ``model_index.json``, or one with the ``config.json`` of a model.
        model_class: ``"package.module:Class"`` for a model's folder whose class is not of Diffusers. The package is
            imported.

    Returns:
        name of the part ("" for a model's own folder) -> module on the meta device.

    Raises:
        ArtifactError: no such folder, no readable configuration, or one that its class refuses.
        UnsupportedError: a class that neither Diffusers nor ``model_class`` gives.
    """
    home = user_path(folder, "folder")
    if (home / "model_index.json").is_file():
        if model_class is not None:
            raise UsageError(
                f"{place(home)} is a pipeline's folder; --model-class is for the folder of one model in it"
            )
        parts = {name: kind for name, kind in parts_of(read_index(home)).items() if not name.startswith(_OTHERS)}
        found = {name: kind for name, kind in parts.items() if _of_diffusers(kind) is not None}
        if not found:
            raise UnsupportedError(
                f"{place(home)} has no denoiser of a class that this Diffusers has: {', '.join(parts) or 'no parts'}; "
                f"give the folder of the model itself, and --model-class for a class of another package"
            )
        return {name: _empty(home, name, _of_diffusers(kind)) for name, kind in found.items()}
    if not (home / "config.json").is_file():
        raise ArtifactError(f"{place(home)} has neither model_index.json nor config.json; give a Diffusers folder")
    return {"": _empty(home, "", _class_of(home, model_class))}


def _of_diffusers(name: str) -> Any:
    """A model class of Diffusers, or None."""
    import diffusers

    kind = getattr(diffusers, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin) else None


def _class_of(home: Path, model_class: str | None) -> Any:
    if model_class is not None:
        return _imported(model_class)
    name = read_part_config(home, "").get("_class_name")
    kind = _of_diffusers(name) if isinstance(name, str) else None
    if kind is None:
        raise UnsupportedError(
            f"{place(home / 'config.json')} names the class {name!r}, which this Diffusers has not; tell where it is "
            f"with --model-class package.module:Class"
        )
    return kind


def _imported(model_class: str) -> Any:
    module, colon, name = model_class.partition(":")
    if not colon or not module or not name:
        raise UsageError(explain("--model-class", model_class, "package.module:Class"))
    try:
        kind = getattr(importlib.import_module(module), name)
    except Exception as error:  # code of others may raise anything
        what = f"{type(error).__name__}: {shortened(escaped(str(error)))}"
        raise UnsupportedError(f"--model-class {model_class} cannot be imported: {what}") from error
    if not hasattr(kind, "from_config"):
        raise UsageError(explain("--model-class", model_class, "a class with from_config (diffusers.ConfigMixin)"))
    return kind


def _empty(home: Path, part: str, kind: Any) -> Any:
    from accelerate import init_empty_weights

    config = read_part_config(home, part)
    check_numbers(home / part / "config.json", config)
    try:
        with init_empty_weights(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind.from_config(config).to("meta").eval()
    except Exception as error:  # whatever a class says about values that it was not made for
        raise ArtifactError(f"{place(home / part / 'config.json')} makes no {kind.__name__}: {said(error)}") from error
