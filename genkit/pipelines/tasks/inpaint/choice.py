"""Values of what was left open, and what does not fit a model, before its weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genkit.errors import UnsupportedError, UsageError
from genkit.families.training.lookup import made_to_inpaint
from genkit.pipelines.called import check_called
from genkit.pipelines.kinds import IMAGE

if TYPE_CHECKING:
    from genkit.control.rules import Rule
    from genkit.pipelines.model import Model
    from genkit.pipelines.tasks.inpaint.settings import InpaintSettings

#: Shares of PAIntA and RASG, and how often steps are taken, where nobody says.
PAINTA, RASG, RESAMPLE = 0.5, 0.0, 2
#: Channels of UNets that read a mask and a masked picture beside their latents.
INPAINTING_CHANNELS = 9


def made_for_it(model: Model) -> bool:
    """Whether a model was trained to inpaint."""
    return made_to_inpaint(model.class_name) or model.config("unet").get("in_channels") == INPAINTING_CHANNELS


def choose(settings: InpaintSettings, model: Model) -> InpaintSettings:
    """Settings with the shares of PAIntA and RASG and the resampling filled in.

    Raises:
        UnsupportedError: a model that inpainting cannot drive, or RASG for one that it does not fit.
        UsageError: resampling with a model that was trained to inpaint.
    """
    if model.kind is not IMAGE:
        raise UnsupportedError(
            f"{model.name} makes videos, and genkit inpaint works on pictures; take a model of pictures, such as "
            "--model toy-image"
        )
    check_called(model, "inpaint", inpaints=True)
    if settings.rasg and (model.flow or "unet" not in model.parts):
        raise UnsupportedError(
            f"--rasg steers by cross-attention and by the noise of a diffusion's steps, and {model.name} is a flow "
            "model or has joint attention; leave it out (--painta acts there)"
        )
    if settings.painta is None or settings.painta > 0:
        settings.check_free("--painta", " or take --painta 0")
    trained = made_for_it(model)
    if trained and (settings.resample or 1) > 1:
        raise UsageError(
            f"--resample {settings.resample}: {model.name} was trained to inpaint and reads mask and picture in every "
            "step; leave it out"
        )
    return settings.replace(
        resample=settings.resample or (1 if trained else RESAMPLE),
        painta=PAINTA if settings.painta is None else settings.painta,
        rasg=RASG if settings.rasg is None else settings.rasg,
    )


def rules_of(settings: InpaintSettings) -> list[Rule]:
    """Rules that reach the layers that PAIntA and RASG control, whatever they do there."""
    from genkit.control import ReadMaps, Take, Where

    found: list[Rule] = [Take("q", of="picture", into="picture")] if settings.painta else []
    maps = ReadMaps(name="prompt", where=Where(roles="cross"))
    return [*found, maps] if settings.rasg else found
