"""A video without end of a pipeline that makes long videos chunk by chunk itself, such as Helios."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.facts import History
from genkit.families.lookup import facts_of
from genkit.streaming.chunks import ChunkStream
from genkit.streaming.plan import configs_of, plan_stream, sidecar_of
from genkit.streaming.prompts import Prompts
from genkit.streaming.sampling import Stepped


class HistoryStream(ChunkStream):
    """Iterates over the chunks of a video, each made by one call of the pipeline that is given the ones before it.

    ``for chunk in HistoryStream(pipe, "a red circle bounces on a blue background"): show(chunk.frames)``

    The frames are those of one long call of the pipeline with the same seed, bit for bit, but come as they are made, in
    constant memory and time per chunk, and the prompt can change while it runs. Attention methods are patched around
    it as around any call: ``with genkit.patch(pipe, ...): ...``.

    Args:
        pipeline: a loaded ``HeliosPipeline`` or ``HeliosPyramidPipeline``.
        prompt: a text; a mapping from frame to text, each in force from the first chunk that begins there or later; or
            an iterable of one text per chunk, with whose end the stream ends. :attr:`prompt` can be set at any time.
        negative_prompt: what to keep away from; see ``guidance_scale``.
        steps: of every chunk. Default: ``genkit.json``, else 50. ``HeliosPyramidPipeline`` takes none: its steps stand
            in ``call`` as ``pyramid_num_inference_steps_list``.
        guidance_scale, height, width, max_sequence_length: of the pipeline's call. Defaults: ``genkit.json``, else
            guidance 5, 384x640 pixels and 512 tokens.
        seed: of all noise.
        stepped: called with (steps done, steps in all) after every denoising step.
        call: further arguments of the pipeline's call.

    Raises:
        UnsupportedError: a pipeline that does not go on by itself; :class:`genkit.streaming.Stream` is for others.
        UsageError: a number of steps below 1, or one for a pipeline that takes none; in ``call`` what the stream gives.

    Cost: every chunk costs what the pipeline's own chunk costs; text is encoded once per prompt.
    """

    def __init__(
        self,
        pipeline: Any,
        prompt: Prompts,
        *,
        negative_prompt: str | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int | None = None,
        seed: int = 0,
        stepped: Stepped | None = None,
        call: Mapping[str, Any] | None = None,
    ):
        name, sidecar = type(pipeline).__name__, sidecar_of(pipeline)
        facts, told = facts_of(name), sidecar.defaults
        if facts is None or not isinstance(facts.streaming, History):
            raise UnsupportedError(f"{name} does not go on by itself; take genkit.streaming.Stream")
        self.plan = plan_stream(name, configs_of(pipeline), sidecar)
        usual = {"guidance_scale": 5.0, "height": 384, "width": 640, "max_sequence_length": 512}
        given: dict[str, Any] = {
            "guidance_scale": guidance_scale, "height": height, "width": width,
            "max_sequence_length": max_sequence_length,
        }  # fmt: skip
        self.call = {key: told.get(key, usual[key]) if value is None else value for key, value in given.items()}
        if "num_inference_steps" in inspect.signature(type(pipeline).__call__).parameters:
            steps = told.get("steps", 50) if steps is None else steps
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
                raise UsageError(explain("steps of a stream", steps, "a whole number of at least 1"))
            self.call["num_inference_steps"] = steps
        elif steps is not None:
            raise UsageError(
                f"{name} takes no number of steps; give call={{'pyramid_num_inference_steps_list': [...]}}"
            )
        twice = sorted({*(call or {})} & {*self.call, *_OWN})
        if twice:
            raise UsageError(f"call of a stream: {', '.join(twice)} is given by the stream itself; leave it out there")
        self.call |= dict(call or {})
        self.stepped = stepped
        super().__init__(
            pipeline, prompt, seed, told.get("negative_prompt") if negative_prompt is None else negative_prompt
        )

    @property
    def bytes(self) -> int:
        """See :attr:`ChunkStream.bytes`: the latents that the next chunk is given."""
        return sum(x.numel() * x.element_size() for x in (self._first, self._latest) if x is not None)

    def _forget(self) -> None:
        self._first: torch.Tensor | None = None
        self._latest: torch.Tensor | None = None

    def _chunk(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        every, chunk = self.pipeline.vae_scale_factor_temporal, self.plan.window.chunk
        made: dict[str, torch.Tensor] = {}

        def step_ended(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
            made["latents"] = values["latents"]
            if self.stepped is not None:
                self.stepped(step + 1, pipe._num_timesteps)
            return {}

        call = dict(self.call)
        positive, negative = self._encoded(text, call["guidance_scale"], call["max_sequence_length"])
        if self._latest is not None:  # every call is a first chunk for the pipeline
            call |= {"video_latents": self._latest, "image_latents": self._first}
            call |= {name: False for name in _FIRST_ALONE if name in call}
        video = self.pipeline(
            prompt_embeds=positive, negative_prompt_embeds=negative, **call, num_frames=1 + every * (chunk - 1),
            output_type="pt", generator=self.generator, add_noise_to_image_latents=False,
            add_noise_to_video_latents=False, callback_on_step_end=step_ended,
            callback_on_step_end_tensor_inputs=["latents"],
        ).frames  # fmt: skip
        return made["latents"], 2 * video.permute(0, 2, 1, 3, 4).float() - 1

    def _keep(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        if self._first is None:
            self._first = latents[:, :, :1].clone()
        whole = latents if self._latest is None else torch.cat([self._latest, latents], 2)
        self._latest = whole[:, :, -self.plan.window.recent :].clone()


#: Arguments of the pipeline's call that a stream gives itself, beside sizes, steps and guidance.
_OWN = frozenset({
    "prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "num_frames", "num_videos_per_prompt",
    "generator", "latents", "output_type", "return_dict", "image", "image_latents", "video", "video_latents",
    "add_noise_to_image_latents", "add_noise_to_video_latents", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs", "history_sizes", "num_latent_frames_per_chunk",
    "keep_first_frame", "is_skip_first_chunk",
})  # fmt: skip
#: What the pipeline does for the first chunk of a video and no other.
_FIRST_ALONE = ("is_amplify_first_chunk",)
