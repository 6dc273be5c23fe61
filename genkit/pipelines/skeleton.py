"""A pipeline without weights: stock classes, schedulers and tokenizers, and networks that have shapes and no values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from genkit.errors import ArtifactError, said
from genkit.pipelines.kept import kept_names
from genkit.pipelines.load import without_bars
from genkit.pipelines.model import Model
from genkit.pipelines.parts import errors_only
from genkit.reading.files import place

if TYPE_CHECKING:
    import torch
    from torch import nn


def skeleton(model: Model, dtype: torch.dtype | None = None) -> Any:
    """The stock pipeline of a model folder, its networks on the meta device: what needs no values can be asked of it.

    Costs seconds for the largest models and no memory for weights.

    Args:
        model: the folder.
        dtype: of the networks, as ``from_pretrained`` would load them; float32 when left out.

    Raises:
        ArtifactError: a configuration or tokenizer that its class refuses.
    """
    from torch import nn

    networks = {}
    for part in model.parts:
        kind = model.class_of(part)
        if isinstance(kind, type) and issubclass(kind, nn.Module):
            networks[part] = model.without_values(part, kind).to("meta")
            if dtype is not None:
                cast(networks[part], dtype)
    try:
        with errors_only(), without_bars():
            kind: Any = model.pipeline_class
            made = kind.from_pretrained(str(model.folder), **networks, local_files_only=True)
    except Exception as error:  # whatever a class says about files that it was not made for
        raise ArtifactError(f"{place(model.folder)} cannot be loaded as {model.class_name}: {said(error)}") from error
    made.set_progress_bar_config(disable=True)
    return made


def configured(model: Model) -> Any:
    """A stand-in for a pipeline whose configurations are asked for: each part is made, without values, when it is.

    It has the name of the pipeline's class, its ``config`` and, of its parts, networks and schedulers.
    """

    def part_of(self: Any, name: str) -> Any:
        kind: Any = model.class_of(name)
        if kind is None or not hasattr(kind, "from_config"):
            raise AttributeError(f"{model.class_name} without weights has no {name}")
        if name in model.outline.components:
            made = model.outline.components[name]
        elif hasattr(kind, "eval"):
            made = model.without_values(name, kind)
        else:
            made = kind.from_config(model.config(name))
        setattr(self, name, made)
        return made

    return type(model.class_name, (), {"__getattr__": part_of, "config": dict(model.config("model_index"))})()


def cast(network: nn.Module, dtype: torch.dtype) -> None:
    """Give parameters the type that ``from_pretrained`` would load them in: some parts of some classes stay float32."""
    kept = kept_names(type(network), dtype)
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and not (kept is not None and kept(name)):
            parameter.data = parameter.data.to(dtype)
