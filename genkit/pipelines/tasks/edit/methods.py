"""The editing pipelines behind the names of ``--method``, called with settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from genkit.control.rules import Rule
from genkit.editing.flow_edit import FlowEditPipeline
from genkit.editing.image_to_image import ImageToImagePipeline
from genkit.editing.infedit import InfEditPipeline
from genkit.editing.prompt_to_prompt import PromptToPromptPipeline
from genkit.editing.shared.pipeline import EditOutput, Progress
from genkit.editing.vimaedit import ViMAEditPipeline
from genkit.pipelines.tasks.edit.given import Given
from genkit.pipelines.tasks.edit.settings import FLOWEDIT, IMG2IMG, INFEDIT, P2P, VIMAEDIT, EditSettings
from genkit.pipelines.tasks.edit.words import chosen, going, replaced

PIPELINES: dict[str, Any] = {
    INFEDIT: InfEditPipeline,
    FLOWEDIT: FlowEditPipeline,
    P2P: PromptToPromptPipeline,
    IMG2IMG: ImageToImagePipeline,
    VIMAEDIT: ViMAEditPipeline,
}


def edit(
    pipe: Any, settings: EditSettings, given: Given, progress: Progress, rules: Sequence[Rule] = ()
) -> Callable[..., EditOutput]:
    """A function that edits with a loaded pipeline; it takes the prompts and the generator of a run.

    Args:
        rules: of the weights in the prompts.
    """

    def run(*, prompt: str, generator: torch.Generator, negative_prompt: str | None = None, **more: Any) -> EditOutput:
        options: dict[str, Any] = {
            "negative_prompt": negative_prompt or "",
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance_scale,
            "generator": generator,
            "max_sequence_length": settings.max_sequence_length,
            "multiple": given.multiple,
            "progress": progress,
            "rules": rules,
        }
        if settings.strength is not None:
            options["strength"] = settings.strength
        if settings.method != IMG2IMG:
            options |= {
                "source_prompt": given.source_prompt,
                "source_guidance_scale": settings.source_guidance_scale,
            }
        if settings.method in (INFEDIT, P2P, VIMAEDIT):
            options |= {"keep": settings.keep, "words": chosen(settings)}
        if settings.method in (INFEDIT, P2P):
            options["keep_maps"] = settings.keep_maps
        if settings.new_words is not None:
            options["new_words"] = settings.new_words
        if settings.settle is not None:
            options["settle"] = settings.settle
        if settings.method == INFEDIT:
            options["source_words"] = going(settings)
        if settings.keep_words:
            options["keep_words"] = settings.keep_words
        if settings.method == VIMAEDIT:
            options["source_words"] = replaced(settings) if options["words"] else ()
        if settings.method == IMG2IMG and "eta" in more:  # as the model's genkit.json samples
            options["eta"] = more["eta"]
        return PIPELINES[str(settings.method)].from_pipe(pipe)(given.padded, prompt, **options)

    return run
