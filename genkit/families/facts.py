"""What genkit knows about the pipelines of a family, apart from their attention: sizes, latents, text, training."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genkit.errors import UsageError, explain
from genkit.families.codec import Codec
from genkit.families.inputs import Inputs, Other
from genkit.families.sizes import ReadConfig, Size, SizeRule

if TYPE_CHECKING:
    import torch

FLOW, EPSILON, VELOCITY, SAMPLE = "flow", "epsilon", "v_prediction", "sample"
OBJECTIVES = (FLOW, EPSILON, VELOCITY, SAMPLE)


def tells_flow(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration, with its ``_class_name``, is of models trained on flows.

    Of a model with a known family ask :meth:`Objective.flow`, which needs no scheduler where the family says it.
    """
    name = str(scheduler.get("_class_name", ""))
    named = "Flow" in name or "RFScheduler" in name
    return named or bool(scheduler.get("use_flow_sigmas")) or scheduler.get("prediction_type") == "flow_prediction"


@dataclass(frozen=True)
class TextRule:
    """How prompts reach the denoiser.

    Args:
        arguments: the denoiser's forward arguments that come from the prompt.
        slots: text tokens of the published models.
        states: (pipeline, prompts, slots) -> states (B, slots, width) of the first of ``arguments``, made by the
            pipeline's own encoders; None when a family needs more than states.
    """

    arguments: tuple[str, ...]
    slots: int
    states: Callable[[Any, list[str], int], torch.Tensor] | None = None


@dataclass(frozen=True)
class Objective:
    """What the denoiser of a family is trained to answer, and how its noise level is told.

    Args:
        kind: "flow" (noise minus clean latents), or None when the scheduler's ``prediction_type`` says it.
        timestep: "thousand" (1000 sigma), "sigma", or "index" (a number in the scheduler's table of betas).
        even: whether the pipelines hand noise levels at even distances to the scheduler, which then shifts them; those
            whose denoiser is told sigma itself always do.
    """

    kind: str | None
    timestep: str
    even: bool = False

    def of(self, scheduler: Any) -> str:
        """One of :data:`OBJECTIVES` for a pipeline with this scheduler; UsageError for another prediction type."""
        if self.kind is not None:
            return self.kind
        told = getattr(scheduler.config, "prediction_type", EPSILON)
        found = FLOW if told == "flow_prediction" else told
        if found not in OBJECTIVES:
            raise UsageError(explain("prediction_type of the scheduler", told, (*OBJECTIVES[1:], "flow_prediction")))
        return found

    def flow(self, scheduler: Mapping[str, Any]) -> bool:
        """Whether a model of the family is trained on flows, before its weights are read.

        Args:
            scheduler: configuration of the model's own.
        """
        return self.kind == FLOW or (self.kind is None and tells_flow(scheduler))


@dataclass(frozen=True)
class Streaming:
    """How the models of a family make a video chunk by chunk.

    Args:
        frames: of pixels, that the published models were trained on.
        told: (denoiser, noise levels (B, F) of the latent frames as timesteps, tokens of a frame, frames per second)
            -> the arguments of its forward that tell them. Levels that are all the same may be told once.
        forcing: regular expression for the pipelines whose models are trained with noise levels of their own for every
            frame (diffusion forcing), so that clean frames can stand before noisy ones.
        carry: latent frames that stand before a chunk by default in such a model.
        one_picture: (reader of configurations) -> whether a model is trained to be given its first frame alone.
    """

    frames: int
    told: Callable[[Any, Any, int, float], dict[str, Any]]
    forcing: str = ""
    carry: int = 3
    one_picture: Callable[[ReadConfig], bool] = lambda config: False


@dataclass(frozen=True)
class History:
    """How pipelines make a video chunk by chunk that go on by themselves from latents they are given.

    Their calls take ``video_latents``, the latest ones, and ``image_latents``, the first one of all.

    Args:
        chunk: latent frames made at once, each chunk decoded by itself.
        recent: latest latent frames that a chunk sees beside the first one.
    """

    chunk: int
    recent: int


@dataclass(frozen=True)
class PipelineFacts:
    """The pipelines of one family. What is None is not known, and whoever needs it says so.

    Args:
        pattern: regular expression for the whole class name of a pipeline.
        fps: frames per second the family was trained at, for files.
        sizes: (reader of the parts' configurations) -> rule of accepted sizes.
        token: the same -> frames, rows and columns of pixels behind one token.
        codec: how latents are normalised.
        text: how prompts reach the denoiser.
        objective: what is trained.
        lora_targets: regular expression for the whole dotted path of the layers that a LoRA changes by default, as
            peft's ``target_modules`` takes it.
        needs_input: regular expression for the whole class names of the pipelines that work on a picture, video, mask
            or sound, though their calls have it as an optional argument; None when the calls' other arguments tell.
        architecture: name of the models in the metadata that other programs read of LoRA files; the family's own name
            where it is None.
        inputs: regular expression for whole class names -> what their calls' signatures do not tell of the pictures
            and videos they take.
        others: class of a folder -> further classes of Diffusers that the same parts serve, by what they take beside
            the prompt; the first that fits is used.
        priors: pipeline classes that make a prompt of pictures for those of this family.
        streaming: how videos are made chunk by chunk; None where they are not.
        tasks: task of genkit -> regular expression for the pipelines of this family it can drive.
    """

    pattern: str
    fps: str | None = None
    sizes: Callable[[ReadConfig], SizeRule] | None = None
    token: Callable[[ReadConfig], Size] | None = None
    codec: Codec | None = None
    text: TextRule | None = None
    objective: Objective | None = None
    lora_targets: str | None = None
    needs_input: str | None = None
    architecture: str | None = None
    inputs: Mapping[str, Inputs] = field(default_factory=dict)
    others: Mapping[str, tuple[Other, ...]] = field(default_factory=dict)
    priors: tuple[str, ...] = ()
    streaming: Streaming | History | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)

    def covers(self, class_name: str) -> bool:
        """Whether a pipeline class belongs here."""
        return re.fullmatch(self.pattern, class_name) is not None

    def can(self, task: str, class_name: str) -> bool:
        """Whether a task of genkit can drive a pipeline class."""
        return task in self.tasks and re.fullmatch(self.tasks[task], class_name) is not None
