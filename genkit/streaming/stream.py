"""A video without end: chunk after chunk of latent frames, each made from noise in sight of the ones before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.families.lookup import facts_of
from genkit.patching import patch, unrotated
from genkit.streaming.attention import StreamAttention
from genkit.streaming.cache import Evicted, RollingCache, placed
from genkit.streaming.chunks import ChunkStream
from genkit.streaming.decode import ChunkDecoder
from genkit.streaming.plan import FRAMES, PIXELS, configs_of, plan_stream, sidecar_of
from genkit.streaming.prompts import Prompts
from genkit.streaming.sampling import Sampler, Stepped, drawn
from genkit.streaming.state import Memory, TemporalState

COND, UNCOND = "cond", "uncond"


class Stream(ChunkStream):
    """Iterates over the chunks of a video that has no end. Memory and time per chunk do not grow.

    ``for chunk in Stream(pipe, "a red circle bounces on a blue background"): show(chunk.frames)``

    Two ways to see what came before (``context``):

    - ``"cache"``, for causal models (blocks of frames that see only earlier ones, CausVid, Self-Forcing): keys and
      values of the first frames (sink) and the latest ones, written by one more pass over every finished chunk at noise
      level 0. Keys are kept before rotation; positions are re-indexed and never leave those that were trained.
    - ``"frames"``, for models that are trained to be given clean frames (``toy-video``, diffusion forcing of
      SkyReels-V2): the latest clean frames stand before the chunk in the sequence, at noise level 0.

    Args:
        pipeline: a loaded text-to-video pipeline. It is patched only while a chunk is made, so that several streams,
            one at a time, and other calls can share it.
        prompt: a text; a mapping from frame to text, each in force from the first chunk that begins there or later; or
            an iterable of one text per chunk, with whose end the stream ends. :attr:`prompt` can be set at any time.
        negative_prompt: what to keep away from; see ``guidance_scale``.
        context: "cache" or "frames". Default: what the model's configuration or ``genkit.json`` tells; weights that
            tell nothing need it.
        chunk: latent frames made at once, with "frames" after the first chunk, which fills the window.
        sink: latent frames at the start that every chunk sees ("cache").
        recent: latent frames before the chunk that it sees.
        trained: latent frames that the model was trained on; the window fits into them. Default: from ``genkit.json``,
            else what the published models were trained on.
        carried: with "frames": "latents" as they are, or "pixels", the latest frames encoded anew as the beginning of
            a clip, which is what models see that are trained on beginnings.
        context_noise: noise level in 0..1 of what was made, told to the model; a little hides faults that would add up.
        keep: with "cache", share of the window's key blocks that every query block reads; 1 is dense.
        state: with "cache", what frames leave behind when they leave the window, in memory that does not grow: the
            file of trained weights (``state.safetensors`` of ``genkit train distill``), or a :class:`TemporalState`.
        steps, guidance_scale, height, width, max_sequence_length: of the pipeline's call. Defaults: ``genkit.json``,
            else 50 steps (4 with ``renoise``), guidance 5, the pipeline's own size and 512 tokens.
        renoise: sample as distilled few-step models are, see :class:`genkit.streaming.sampling.Sampler`.
        seed: of all noise.
        fps: of the video, for models that are told.
        evicted: told of keys and values that leave the cache's window, see :class:`RollingCache`.
        stepped: called with (steps done, steps in all) after every denoising step.

    Raises:
        UsageError, UnsupportedError: see :func:`genkit.streaming.plan.plan_stream`; sizes that the model has no
            latents for.

    Source: Hybrid Forcing (arXiv 2604.10103), Self-Forcing (arXiv 2506.08009), Diffusion Forcing (arXiv 2407.01392).
    """

    def __init__(
        self,
        pipeline: Any,
        prompt: Prompts,
        *,
        negative_prompt: str | None = None,
        context: str | None = None,
        chunk: int | None = None,
        sink: int | None = None,
        recent: int | None = None,
        trained: int | None = None,
        carried: str | None = None,
        context_noise: float = 0.0,
        keep: float = 1.0,
        state: str | Path | TemporalState | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        max_sequence_length: int | None = None,
        renoise: bool = False,
        seed: int = 0,
        fps: float | None = None,
        evicted: Evicted | None = None,
        stepped: Stepped | None = None,
    ):
        self.pipeline, self.stepped, self._evicted = pipeline, stepped, evicted
        name, config, sidecar = type(pipeline).__name__, configs_of(pipeline), sidecar_of(pipeline)
        self.plan = plan_stream(
            name, config, sidecar, context=context, chunk=chunk, sink=sink, recent=recent, trained=trained,
            carried=carried,
        )  # fmt: skip
        if isinstance(context_noise, bool) or not isinstance(context_noise, (int, float)) or not 0 <= context_noise < 1:
            raise UsageError(explain("context_noise", context_noise, "a noise level of at least 0 and below 1"))
        if self.plan.record is None or self.plan.codec is None:
            raise UnsupportedError(f"{name} goes on in its own way; take genkit.streaming.HistoryStream")
        self.record, self.codec = self.plan.record, self.plan.codec
        if self.plan.context == FRAMES and keep != 1:
            raise UsageError("keep belongs to context='cache'; with 'frames' patch the pipeline with any method")
        if self.plan.context == FRAMES and state is not None:
            raise UsageError("state belongs to context='cache': clean frames before a chunk leave no keys and values")
        if isinstance(state, (str, Path)):
            state = TemporalState.of(pipeline.transformer, state)
        if not isinstance(state, (TemporalState, type(None))):
            raise UsageError(explain("state of a stream", state, "a file of weights, a TemporalState or None"))
        self.attention = StreamAttention(keep=keep, state=state)
        told = sidecar.defaults
        usual = {"steps": 4 if renoise else 50, "guidance_scale": 5.0, "height": 480, "width": 832}
        values = {"steps": steps, "guidance_scale": guidance_scale, "height": height, "width": width}
        filled: dict[str, Any] = {
            key: told.get(key, usual[key]) if value is None else value for key, value in values.items()
        }
        self.height, self.width, self.guidance_scale = (
            filled["height"],
            filled["width"],
            float(filled["guidance_scale"]),
        )
        facts = facts_of(name)
        rule = None if facts is None or facts.sizes is None else facts.sizes(config)
        self._grid = self._size(rule)
        self.length = int(max_sequence_length or told.get("max_sequence_length") or 512)
        self.sampler = Sampler(pipeline.scheduler, filled["steps"], renoise)
        self.context_noise = float(context_noise)
        self.fps = float(told.get("fps") or (facts.fps if facts is not None else None) or 16) if fps is None else fps
        self.decoder = ChunkDecoder(pipeline.vae, self.codec)
        super().__init__(
            pipeline, prompt, seed, told.get("negative_prompt") if negative_prompt is None else negative_prompt
        )

    def _size(self, rule: Any) -> tuple[int, int]:
        """Rows and columns of latents."""
        if rule is not None:
            rule.check(self.height, self.width, None)
        each = getattr(self.pipeline, "vae_scale_factor_spatial", 8)
        patch = self.pipeline.transformer.config.patch_size
        for name, size, of in (("height", self.height, patch[1]), ("width", self.width, patch[2])):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % (each * of):
                raise UsageError(explain(name, size, f"a multiple of {each * of}"))
        return self.height // each, self.width // each

    def _forget(self) -> None:
        self.decoder.reset()
        self._before: torch.Tensor | None = None  # the latest clean latents or pixels
        self.caches: dict[str, RollingCache] = {}

    @property
    def bytes(self) -> int:
        """Memory that is kept from chunk to chunk."""
        before = 0 if self._before is None else self._before.numel() * self._before.element_size()
        return before + self.decoder.bytes + sum(cache.bytes for cache in self.caches.values())

    def _restorer(self) -> Callable[[], None]:
        decoded = self.decoder.state

        def back() -> None:
            self.decoder.state = decoded

        return back

    def _chunk(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        states = self._states(text)
        front = self._front()
        latents = self._make(states, front)
        return latents, self._pixels(latents, front)

    def _states(self, text: str) -> dict[str, torch.Tensor]:
        """Text states of every branch."""
        positive, negative = self._encoded(text, self.guidance_scale, self.length)
        states = {COND: positive, **({} if negative is None else {UNCOND: negative})}
        return {branch: state.to(self.pipeline.transformer.dtype) for branch, state in states.items()}

    def _make(self, states: dict[str, torch.Tensor], front: torch.Tensor | None) -> torch.Tensor:
        """Clean latents of the next chunk alone."""
        model, new = self.pipeline.transformer, self.plan.new(self.made)
        shape = (1, model.config.in_channels, new, *self._grid)
        noise = drawn(shape, self.generator, self._device)
        if self.plan.context == FRAMES:
            return self.sampler.run(noise, self._guided(states, front), self.generator, self.stepped)
        with self._cached(states, noise) as check:
            latents = self.sampler.run(noise, self._guided(states, None), self.generator, self.stepped)
            level = torch.full((1, new), 1000 * self.context_noise, device=noise.device)
            clean = self._noised(latents)
            self.attention.call.write = True
            for branch, state in states.items():
                self._call(branch, clean, level, state, self.sampler.steps - 1)
            check((len(self.sampler.scheduler.timesteps) + 1) * len(states))
        return latents

    def _noised(self, latents: torch.Tensor) -> torch.Tensor:
        """What is shown of clean latents: with a little noise where that is asked for."""
        if self.context_noise == 0:
            return latents
        noise = drawn(latents.shape, self.generator, latents.device)
        return (1 - self.context_noise) * latents + self.context_noise * noise

    def _front(self) -> torch.Tensor | None:
        """Clean latents that stand before the chunk in its sequence; None where there are none."""
        if self._before is None:
            return None
        carried = self._before
        if self.plan.carried == PIXELS:
            carried = self.codec.encode(self.pipeline.vae, carried)
        return carried.to(self._device).float()

    def _guided(self, states: dict[str, torch.Tensor], front: torch.Tensor | None) -> Callable[..., torch.Tensor]:
        """The answer for a chunk's noisy latents, with guidance."""
        shown = None if front is None else self._noised(front)
        given = 0 if shown is None else shown.shape[2]

        def answer(latents: torch.Tensor, at: torch.Tensor, step: int) -> torch.Tensor:
            whole = latents if shown is None else torch.cat([shown, latents], 2)
            levels = at.float().expand(1, whole.shape[2]).clone()
            levels[:, :given] = 1000 * self.context_noise
            found = {branch: self._call(branch, whole, levels, state, step) for branch, state in states.items()}
            out = found[COND]
            if UNCOND in found:
                out = found[UNCOND] + self.guidance_scale * (out - found[UNCOND])
            return out[:, :, given:]

        return answer

    def _call(
        self, branch: str, latents: torch.Tensor, levels: torch.Tensor, state: torch.Tensor, step: int
    ) -> torch.Tensor:
        """One call of the denoiser for one branch."""
        model, tokens = self.pipeline.transformer, self._tokens
        self.attention.call.cache = self.caches.get(branch)
        told = self.record.told(model, levels.to(latents.device), tokens, self.fps)
        facts = {"step_index": step, "num_inference_steps": len(self.sampler.scheduler.timesteps)}
        with model.cache_context(branch, **facts):
            return model(hidden_states=latents.to(model.dtype), encoder_hidden_states=state, return_dict=False, **told)[
                0
            ]

    @property
    def _tokens(self) -> int:
        """Tokens of a latent frame."""
        patch = self.pipeline.transformer.config.patch_size
        return (self._grid[0] // patch[1]) * (self._grid[1] // patch[2])

    @contextmanager
    def _cached(self, states: dict[str, torch.Tensor], latents: torch.Tensor) -> Iterator[Callable[[int], None]]:
        """The model with this stream's cache behind the gate; yields a check of how many attention calls came there."""
        model, window = self.pipeline.transformer, self.plan.window
        for branch in states:
            if branch not in self.caches:
                memory = None if self.attention.state is None else Memory()
                self.caches[branch] = RollingCache(window, self._evicted if branch == COND else None, memory)
        call = self.attention.call
        call.served, call.write = 0, False
        with unrotated(model) as positions, patch(model, self.attention, roles="self") as handle:
            rotary, leaving = placed(
                window, self.made, lambda frames: positions.tables(frames, latents), self.attention.state is not None
            )
            for cache in self.caches.values():
                cache.begin(rotary, self._tokens, leaving)

            def check(calls: int) -> None:
                wanted = calls * len(handle.sites)
                if call.served != wanted:
                    raise UnsupportedError(
                        f"{call.served} of {counted(wanted, 'attention call')} of the chunk reached the "
                        "stream's cache; the "
                        f"others ran the model's own attention: {handle.report()}"
                    )

            try:
                yield check
            finally:
                call.cache = None

    def _pixels(self, latents: torch.Tensor, front: torch.Tensor | None) -> torch.Tensor:
        """Pixels (1, 3, F, H, W) of a chunk's own frames."""
        if front is None or self.plan.carried != PIXELS:
            return self.decoder.decode(latents)
        # A beginning that was encoded anew makes the window a clip of its own.
        self.decoder.reset()
        whole = self.decoder.decode(torch.cat([front, latents], 2))
        return whole[:, :, self._frames_of(front.shape[2]) :]

    def _frames_of(self, latent: int) -> int:
        """Frames of a clip of so many latent frames."""
        return 1 + self.pipeline.vae_scale_factor_temporal * (latent - 1)

    def _keep(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """What the next chunk will see."""
        if self.plan.context != FRAMES:
            for cache in self.caches.values():
                cache.commit()
            return
        made, count = latents, self.plan.window.recent
        if self.plan.carried == PIXELS:
            made, count = pixels, self._frames_of(count)
        if self._before is not None and made.shape[2] < count:
            made = torch.cat([self._before.to(made), made], 2)
        self._before = made[:, :, -count:].clone()
