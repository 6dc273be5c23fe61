"""The two pictures of a style transfer, read once before any weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genkit.errors import UnsupportedError, UsageError
from genkit.media.canvas import Canvas, read_still
from genkit.pipelines.called import check_called
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.prompts import read_prompts
from genkit.pipelines.tasks.edit.given import check_size
from genkit.reading import file_digest, regular
from genkit.reading.files import user_path

if TYPE_CHECKING:
    from genkit.control.rules import Rule
    from genkit.pipelines.model import Model
    from genkit.pipelines.resolve import Request
    from genkit.pipelines.tasks.style.settings import StyleSettings

#: Pixels of each picture at most; a model's own limit comes on top for the content.
MOST_PIXELS = 1 << 24


@dataclass(frozen=True)
class Given:
    """What a style transfer works on.

    Args:
        canvas: the content at a size that the model takes.
        style: uint8 (H, W, 3), of any size.
        files: of the two.
        told: what was chosen in reading them, one line each.
        source_prompt, style_prompt: their captions, as the model reads them; None = the prompt.
    """

    canvas: Canvas
    style: np.ndarray
    files: tuple[Path, Path]
    told: tuple[str, ...] = ()
    source_prompt: str | None = None
    style_prompt: str = ""

    def fingerprints(self) -> dict[str, str]:
        """Short digests of the files."""
        names = ("image_fingerprint", "style_fingerprint")
        return {name: file_digest(file)[:16] for name, file in zip(names, self.files, strict=True)}


def find(settings: StyleSettings) -> tuple[Path, Path]:
    """The files of content and style.

    Raises:
        UsageError: one is not given. ArtifactError: one does not exist or is no ordinary file.
    """
    if settings.image is None:
        raise UsageError("no picture: give one, genkit style IMAGE --style FILE")
    if settings.style is None:
        raise UsageError("no style: give the picture whose manner is taken, --style FILE")
    content, style = user_path(settings.image, "IMAGE"), user_path(settings.style, "--style")
    return regular(content, "IMAGE"), regular(style, "--style")


def check_model(model: Model, command: str = "style") -> None:
    """Refuse models that make no pictures, and those that genkit cannot call; UnsupportedError names the command."""
    if model.kind is not IMAGE:
        raise UnsupportedError(
            f"{model.name} makes videos, and genkit {command} makes pictures; take a model of pictures, such as "
            "--model toy-image"
        )
    check_called(model, command)


def rules_of(settings: StyleSettings, model: Model) -> list[Rule]:
    """Rules that reach the layers that the style takes.

    Raises:
        UsageError: ``--style-layers`` is found in no layer. UnsupportedError: a model without such layers.
    """
    from genkit.control import Take, Where
    from genkit.editing.attenst.layers import style_layers
    from genkit.patching.targets import find_denoisers

    denoiser = find_denoisers(model.outline)[0]
    names = style_layers(denoiser.family, denoiser.model(), settings.style_layers)
    return [Take("kv", of="style", into="result", where=Where(names=names))]


def read_given(content: Path, style: Path, model: Model) -> Given:
    """Read both pictures for a model.

    Raises:
        ArtifactError: no readable picture, or more pixels than allowed.
        UsageError: a content larger than the model's own limit.
    """
    picture, manner = read_still(content, MOST_PIXELS, "IMAGE"), read_still(style, MOST_PIXELS, "--style")
    multiple = 8 if model.rule is None else model.rule.multiple
    limits = model.sidecar.limits
    canvas = Canvas.of(picture.pixels, multiple, least=(limits.get("min_height", 1), limits.get("min_width", 1)))
    check_size(content, canvas, model)
    return Given(canvas, manner.pixels, (content, style), (*picture.told, *manner.told, *canvas.told))


def read_texts(request: Request) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The captions as the model reads them, and what of them is cut or unknown."""
    texts: dict[str, Any] = {}
    told: list[str] = []
    for name in ("source_prompt", "style_prompt"):
        text = getattr(request.settings, name)
        if text:
            asked = request.settings.replace(prompt=text, negative_prompt=None)
            limit = request.model.sidecar.limits.get("max_prompt_tokens")
            read = read_prompts(request.tokenizers, asked, limit, name=name.replace("_", " "))
            texts[name] = read.prompt
            told += read.told
        else:
            texts[name] = text
    return texts, tuple(told)
