"""How the pipelines of each family read prompts: which tokenizer makes which of the denoiser's text tokens."""

from __future__ import annotations

from dataclasses import dataclass

#: Pipeline that enlarges a picture four times beside a prompt.
UPSCALER = "StableDiffusionUpscalePipeline"


@dataclass(frozen=True)
class Reading:
    """A run of the denoiser's text tokens.

    Args:
        tokenizer: attribute of the pipeline.
        length: tokens of the run where the call names no other number; None = the tokenizer's own limit, always.
        after: attribute of the tokenizer whose whole length comes before; None = the run is the first.
        attribute: attribute of the pipeline that holds the length in place of ``length``, where there is one.
        template: text around the prompt, ``{}`` in its place.
        dropped: tokens cut off at the start of the encoder's answer.
    """

    tokenizer: str = "tokenizer"
    length: int | None = None
    after: str | None = None
    attribute: str | None = None
    template: str = "{}"
    dropped: int = 0


def _hunyuan() -> tuple[Reading, ...]:
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    template, dropped = DEFAULT_PROMPT_TEMPLATE["template"], DEFAULT_PROMPT_TEMPLATE["crop_start"]
    return (Reading(length=256, template=template, dropped=dropped),)


#: Of Diffusers' pipeline of Qwen-Image, which makes them when it is loaded.
_QWEN_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
_QWEN_DROPPED = 34
_CLIP = (Reading(),)
# Beginning of the pipeline's class name -> its runs.
_READINGS: dict[str, tuple[Reading, ...]] = {
    "StableDiffusion3": (Reading(), Reading("tokenizer_3", 256, after="tokenizer")),
    "StableDiffusion": _CLIP,
    "LatentConsistency": _CLIP,
    "Flux": (Reading("tokenizer_2", 512),),
    "Wan": (Reading(length=512),),
    "CogVideoX": (Reading(length=226),),
    "Mochi": (Reading(length=256),),
    "LTX2": (Reading(length=1024),),  # padding stands before the prompt, and its connectors move it behind
    "LTXPipeline": (Reading(length=128),),
    "LTXImageToVideo": (Reading(length=128),),
    "LTXCondition": (Reading(length=256),),
    "QwenImagePipeline": (
        Reading(length=1024, attribute="tokenizer_max_length", template=_QWEN_TEMPLATE, dropped=_QWEN_DROPPED),
    ),
}
_HUNYUAN = "HunyuanVideo"
# Pipelines with such a beginning that read prompts in another way.
_OTHERS = ("Flux2", "Flux3")
#: Beginnings of the names of pipelines whose way of reading is known.
KNOWN: tuple[str, ...] = (*_READINGS, _HUNYUAN)


def readings_of(name: str) -> tuple[Reading, ...] | None:
    """How pipelines of a class read prompts, by the class's name; None where that is not known."""
    if name.startswith(_HUNYUAN):
        return _hunyuan()
    if name.startswith(_OTHERS):
        return None
    return next((found for prefix, found in _READINGS.items() if name.startswith(prefix)), None)
