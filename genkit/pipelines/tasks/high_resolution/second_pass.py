"""Videos larger than a model was trained on: a run at the training size, enlarged, re-noised and denoised again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from genkit.attention.sliding_window import DualPath, SlidingWindow
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.pipelines.tasks.high_resolution.sizes import FLOW_SHIFT, STRENGTH, kept_steps, refusal, target_size

AUTO = "auto"
_OVERLAP = 4  # neighbouring tiles of the decoder share a quarter of their side


@dataclass(frozen=True)
class HighResolutionOutput:
    """Result of :func:`high_resolution`.

    Args:
        frames: float32 (1, T, H, W, 3) in [0, 1] at the target size, as the pipeline's own output is.
        base_frames: (1, T, h, w, 3), the run at the training size that was enlarged.
        report: what the attention patch of the second pass did, or None without a method.
    """

    frames: np.ndarray
    base_frames: np.ndarray
    report: Any = None


def high_resolution(
    pipeline: Any,
    *,
    upscale: float = 2.0,
    method: Any = AUTO,
    schedule: Any = None,
    backend: str = "auto",
    strength: float = STRENGTH,
    flow_shift: float | None = FLOW_SHIFT,
    tiling: bool = True,
    frames: np.ndarray | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **call: Any,
) -> HighResolutionOutput:
    """A video ``upscale`` times as large as the model was trained for (FreeSwim), without training.

    The pipeline runs as usual at its training size with its own attention. Its frames are enlarged (bilinear), encoded,
    noised again and denoised with windows of the training size and, beside them, a path with full attention whose text
    cross-attention both use. Decoding works in tiles of the training size.

    Args:
        pipeline: a Wan text-to-video pipeline (``WanPipeline``), with one or two denoisers.
        upscale: factor of height and width; the target must be a multiple of the model's token size.
        method: attention of the second pass: ``"auto"`` = sliding_window with two paths and the base run's token grid;
            a method, a list of them or a recipe; None = the model's own attention everywhere.
        schedule: where in the second pass the method applies; steps count from its first step.
        backend: see :func:`genkit.patch`.
        strength: share of the steps that are run again; more changes more. Published 0.7.
        flow_shift: timestep shift of the second pass, larger = noisier start; None = the pipeline's own. Published 9.
        tiling: encode and decode the target in tiles of the base size: less memory, and the decoder sees the size it
            was trained on.
        frames: (T, h, w, 3) in [0, 1] to start from in place of a base run.
        generator: random numbers of both passes.
        progress: called as ``progress("step", done, total)`` over both passes.
        call: arguments of the pipeline's call: prompt, negative_prompt, height, width, num_frames, guidance_scale, ...

    Raises:
        UnsupportedError: another kind of pipeline (the message tells why), or a method that does not fit.
        UsageError: a size, strength or argument that is not allowed.

    Cost: the base run, plus ``strength`` times the steps at the target size; see docs/methods/sliding_window.md.

    Source: FreeSwim: Revisiting Sliding-Window Attention Mechanisms for Training-Free Ultra-High-Resolution Video
    Generation.
    """
    reason = refusal(type(pipeline).__name__, pipeline.config.get("expand_timesteps", False))
    if reason is not None:
        raise UnsupportedError(reason)
    arguments = _with_defaults(pipeline, call)
    if frames is not None:
        arguments |= dict(zip(("num_frames", "height", "width"), np.shape(frames)[:3], strict=True))
    cell = _token_size(pipeline)
    target = target_size(arguments["height"], arguments["width"], upscale, cell)
    again = kept_steps(arguments["num_inference_steps"], strength)
    total = again + (0 if frames is not None else arguments["num_inference_steps"])
    if frames is None:
        frames = _base_run(pipeline, arguments, generator, progress, total)
    if isinstance(method, str) and method == AUTO:
        method = SlidingWindow(base=(arguments["height"] // cell, arguments["width"] // cell), dual=True)
    with _tiled(pipeline.vae, arguments["height"], arguments["width"], tiling):
        latents = _encode(pipeline, enlarge_frames(frames, *target))
        with _patched(pipeline, method, schedule, backend) as handle, torch.no_grad():
            latents = _denoise(
                pipeline, latents, arguments, strength, flow_shift, handle, generator,
                lambda done: progress and progress("step", total - again + done, total),
            )  # fmt: skip
        if progress is not None:
            progress("decode", 0, 1)
        made = _decode(pipeline, latents)
    pipeline.maybe_free_model_hooks()
    return HighResolutionOutput(made, np.asarray(frames)[None], None if handle is None else handle.report())


def enlarge_frames(frames: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Frames (T, h, w, 3) in [0, 1] as float32 (1, 3, T, height, width) in [-1, 1], bilinear, frame by frame."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)).permute(0, 3, 1, 2)
    if pixels.dim() != 4 or pixels.shape[1] != 3 or float(pixels.min()) < 0 or float(pixels.max()) > 1:
        raise UsageError(explain("frames", tuple(np.shape(frames)), "(T, H, W, 3) with values from 0 to 1"))
    pixels = functional.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
    return pixels.permute(1, 0, 2, 3)[None] * 2 - 1


def _with_defaults(pipeline: Any, call: dict[str, Any]) -> dict[str, Any]:
    from genkit.pipelines.kinds import accepted

    known = accepted(type(pipeline))
    for name in call:
        if name not in known:
            raise UsageError(explain("argument of the pipeline", name, list(known)))
    for name in ("latents", "num_videos_per_prompt", "output_type"):
        if call.get(name) not in (None, 1, "np"):
            raise UsageError(f"high_resolution sets {name} itself; leave it out")
    if not isinstance(call.get("prompt"), str):
        raise UsageError(explain("prompt", call.get("prompt"), "one text; high resolution makes one video per call"))
    names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale", "max_sequence_length")
    return {**{name: known[name].default for name in names}, **call}


def _token_size(pipeline: Any) -> int:
    """Pixels along one side of a token."""
    model = pipeline.transformer if pipeline.transformer is not None else pipeline.transformer_2
    return pipeline.vae_scale_factor_spatial * model.config.patch_size[1]


def _base_run(pipeline: Any, arguments: dict[str, Any], generator: Any, progress: Any, total: int) -> np.ndarray:
    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress("step", step + 1, total)
        return tensors

    own = arguments.get("callback_on_step_end")
    follow = {} if progress is None or own is not None else {"callback_on_step_end": after_step}
    return pipeline(**{**arguments, **follow, "output_type": "np"}, generator=generator).frames[0]


@contextmanager
def _tiled(vae: Any, height: int, width: int, on: bool) -> Iterator[None]:
    """Let the VAE work in tiles of a size in pixels meanwhile, and leave its settings as they were."""
    if not on:
        yield
        return
    sides = [f"{what}_{side}" for what in ("min", "stride") for side in ("height", "width")]
    names = ("use_tiling", *(f"tile_sample_{side}" for side in sides))
    before = {name: getattr(vae, name) for name in names}
    unit = vae.spatial_compression_ratio
    strides = [max(unit, (side - side // _OVERLAP) // unit * unit) for side in (height, width)]
    vae.enable_tiling(height, width, *strides)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(vae, name, value)


def _patched(pipeline: Any, method: Any, schedule: Any, backend: str) -> Any:
    if method is None:
        return nullcontext()
    from genkit.patching import patch

    return patch(pipeline, method, schedule=schedule, backend=backend)


def _normal(pipeline: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the VAE's latents per channel, for (B, C, T, H, W)."""
    config = pipeline.vae.config
    mean, std = (torch.tensor(each, dtype=torch.float32) for each in (config.latents_mean, config.latents_std))
    return mean.view(1, -1, 1, 1, 1).to(like.device), std.view(1, -1, 1, 1, 1).to(like.device)


@torch.no_grad()
def _encode(pipeline: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Normalised float32 latents of pixels (1, 3, T, H, W) in [-1, 1]: the mode, nothing is drawn."""
    found = pipeline.vae.encode(pixels.to(pipeline._execution_device, pipeline.vae.dtype)).latent_dist.mode().float()
    mean, std = _normal(pipeline, found)
    return (found - mean) / std


@torch.no_grad()
def _decode(pipeline: Any, latents: torch.Tensor) -> np.ndarray:
    mean, std = _normal(pipeline, latents)
    pixels = pipeline.vae.decode((latents.float() * std + mean).to(pipeline.vae.dtype), return_dict=False)[0]
    return pipeline.video_processor.postprocess_video(pixels, output_type="np")


def _scheduler(pipeline: Any, flow_shift: float | None, steps: int, start: int, device: Any) -> Any:
    """A scheduler of the pipeline's kind that begins at step ``start``; the pipeline's own is not touched."""
    config, changes = pipeline.scheduler.config, {}
    if flow_shift is not None:
        name = next((name for name in ("flow_shift", "shift") if name in config), None)
        if name is None:
            kind = type(pipeline.scheduler).__name__
            raise UnsupportedError(f"{kind} has no timestep shift; give flow_shift=None, or use a flow scheduler")
        changes[name] = flow_shift
    scheduler = type(pipeline.scheduler).from_config(config, **changes)
    scheduler.set_timesteps(steps, device=device)
    scheduler.set_begin_index(start * scheduler.order)
    return scheduler


def _denoise(
    pipeline: Any,
    latents: torch.Tensor,
    arguments: dict[str, Any],
    strength: float,
    flow_shift: float | None,
    handle: Any,
    generator: torch.Generator | None,
    progress: Callable[[int], Any],
) -> torch.Tensor:
    """Noise normalised latents (1, C, T, H, W) again and denoise them."""
    from diffusers.utils.torch_utils import randn_tensor

    device, steps = pipeline._execution_device, arguments["num_inference_steps"]
    kept = kept_steps(steps, strength)
    scheduler = _scheduler(pipeline, flow_shift, steps, steps - kept, device)
    timesteps = scheduler.timesteps[(steps - kept) * scheduler.order :]
    noise = randn_tensor(latents.shape, generator=generator, device=device, dtype=torch.float32)
    latents = scheduler.add_noise(latents.to(device), noise, timesteps[:1])
    guider = _Guided(pipeline, arguments, handle, len(timesteps))
    for index, timestep in enumerate(timesteps):
        sigma = float(scheduler.sigmas[(steps - kept) * scheduler.order + index])
        prediction = guider.predict(latents, timestep, index, sigma)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        progress(index // scheduler.order + 1)
    return latents


class _Guided:
    """Predictions with guidance, on one or two paths, of the denoiser that is in charge at a timestep."""

    def __init__(self, pipeline: Any, arguments: dict[str, Any], handle: Any, total: int):
        self.pipeline = pipeline
        self.scale = arguments["guidance_scale"]
        self.low_scale = arguments.get("guidance_scale_2") or self.scale
        self.total = total
        methods = [part.method for part in handle.parts] if handle is not None else []
        self.method = next((each for each in methods if isinstance(each, SlidingWindow) and each.dual), None)
        self.path = DualPath.of(handle.cache) if self.method is not None else None
        self.model: Any = None
        guided = max(self.scale, self.low_scale) > 1
        self.texts = pipeline.encode_prompt(
            prompt=arguments["prompt"],
            negative_prompt=arguments.get("negative_prompt"),
            do_classifier_free_guidance=guided,
            max_sequence_length=arguments["max_sequence_length"],
            device=pipeline._execution_device,
        )

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, index: int, sigma: float) -> torch.Tensor:
        """The guided prediction for latents (1, C, T, H, W) at step ``index`` of this pass."""
        model, scale = self._in_charge(timestep)
        if model is not self.model and self.path is not None:
            self.path.clear()  # another denoiser's cross-attention means nothing to this one
        self.model = model
        out = self._call("cond", self.texts[0], latents, timestep, index, sigma)
        if scale <= 1:
            return out
        without = self._call("uncond", self.texts[1], latents, timestep, index, sigma)
        return without + scale * (out - without)

    def _in_charge(self, timestep: torch.Tensor) -> tuple[Any, float]:
        """Wan 2.2 has a denoiser for the noisy steps and one for the rest."""
        share = self.pipeline.config.boundary_ratio
        if share is None or timestep >= share * self.pipeline.scheduler.config.num_train_timesteps:
            return self.pipeline.transformer, self.scale
        return self.pipeline.transformer_2, self.low_scale

    def _call(
        self, branch: str, text: torch.Tensor, latents: torch.Tensor, timestep: torch.Tensor, index: int, sigma: float
    ) -> torch.Tensor:
        model = self.model
        inputs = {
            "hidden_states": latents.to(model.dtype),
            "timestep": timestep.expand(latents.shape[0]),
            "encoder_hidden_states": text.to(model.dtype),
        }
        with model.cache_context(branch, step_index=index, sigma=sigma, num_inference_steps=self.total):
            if self.path is not None:
                return self.path.run(model, self.method, index, branch, **inputs)
            return model(**inputs, return_dict=False)[0]
