"""Videos larger than a model was trained on: a run at the training size, enlarged, re-noised and denoised again.

Both passes are calls of the stock pipeline, so that pictures that it starts from, timesteps of single tokens and two
experts are what it makes of them; the second one gets latents, and a scheduler that has only the last steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from genkit.attention.sliding_window import DualPath, SlidingWindow
from genkit.errors import UnsupportedError, UsageError, explain
from genkit.families.codec import Codec
from genkit.families.lookup import facts_of, family_of
from genkit.pipelines.kinds import accepted, token_size
from genkit.pipelines.tasks.high_resolution.last_steps import LastSteps, last_steps
from genkit.pipelines.tasks.high_resolution.sizes import (
    FLOW_SHIFT,
    STRENGTH,
    kept_steps,
    merged,
    refusal,
    target_size,
)

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
    large: dict[str, Any] | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **call: Any,
) -> HighResolutionOutput:
    """A video ``upscale`` times as large as the model was trained for (FreeSwim), without training.

    The pipeline runs as usual at its training size with its own attention. Its frames are enlarged (bilinear), encoded,
    noised again and denoised with windows of the training size and, beside them, a path with full attention whose text
    cross-attention both use. Decoding works in tiles of the training size. Pictures that the video starts from are
    given to the second pass at its own size.

    Args:
        pipeline: a Wan or LTX-Video pipeline from text or from a picture (``WanPipeline``, ``WanImageToVideoPipeline``,
            ``LTXPipeline``, ``LTXImageToVideoPipeline``), with one or two denoisers.
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
        large: arguments of the second pass that take the place of ``call``'s, such as ``image`` at the target size;
            left out, the pipeline brings the pictures of the first pass to that size.
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
    name = type(pipeline).__name__
    reason = refusal(name)
    if reason is not None:
        raise UnsupportedError(reason)
    facts = facts_of(name)
    assert facts is not None and facts.codec is not None, "a pipeline of a family that tells how latents are made"
    arguments = _with_defaults(pipeline, call)
    if frames is not None:
        arguments |= dict(zip(("num_frames", "height", "width"), np.shape(frames)[:3], strict=True))
    token = token_size(name, lambda part: dict(getattr(pipeline, part).config))
    assert token is not None, "a pipeline of a family that tells its tokens"
    cell = token[1:]
    target = target_size(arguments["height"], arguments["width"], upscale, max(cell))
    again = kept_steps(arguments["num_inference_steps"], strength)
    total = again + (0 if frames is not None else arguments["num_inference_steps"])
    if frames is None:
        frames = _base_run(pipeline, arguments, generator, progress, total)
    if isinstance(method, str) and method == AUTO:
        base = (arguments["height"] // cell[0], arguments["width"] // cell[1])
        method = replace(SlidingWindow(base=base, dual=True), **merged(name))
    second = {**arguments, **(large or {}), **dict(zip(("height", "width"), target, strict=True))}
    with ExitStack() as stack:
        stack.enter_context(_tiled(pipeline.vae, arguments["height"], arguments["width"], tiling))
        latents = facts.codec.encode(pipeline.vae, enlarge_frames(frames, *target))
        handle = stack.enter_context(_patched(pipeline, method, schedule, backend))
        steps = stack.enter_context(last_steps(pipeline, again, flow_shift))
        paths = _Paths(pipeline, handle)
        stack.enter_context(paths.followed())
        made = _second_run(
            pipeline, steps, facts.codec, latents, second, generator, paths,
            lambda done: progress and progress("step", total - again + done, total),
            lambda: progress and progress("decode", 0, 1),
        )  # fmt: skip
    return HighResolutionOutput(made, np.asarray(frames)[None], None if handle is None else handle.report())


def enlarge_frames(frames: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Frames (T, h, w, 3) in [0, 1] as float32 (1, 3, T, height, width) in [-1, 1], bilinear, frame by frame."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)).permute(0, 3, 1, 2)
    if pixels.dim() != 4 or pixels.shape[1] != 3 or float(pixels.min()) < 0 or float(pixels.max()) > 1:
        raise UsageError(explain("frames", tuple(np.shape(frames)), "(T, H, W, 3) with values from 0 to 1"))
    pixels = functional.interpolate(pixels, (height, width), mode="bilinear", align_corners=False)
    return pixels.permute(1, 0, 2, 3)[None] * 2 - 1


def _with_defaults(pipeline: Any, call: dict[str, Any]) -> dict[str, Any]:

    known = accepted(type(pipeline))
    for name in call:
        if name not in known:
            raise UsageError(explain("argument of the pipeline", name, list(known)))
    for name in ("latents", "num_videos_per_prompt", "output_type"):
        if call.get(name) not in (None, 1, "np"):
            raise UsageError(f"high_resolution sets {name} itself; leave it out")
    if not isinstance(call.get("prompt"), str):
        raise UsageError(explain("prompt", call.get("prompt"), "one text; high resolution makes one video per call"))
    names = ("height", "width", "num_frames", "num_inference_steps")
    return {**{name: known[name].default for name in names}, **call}


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
    vae.enable_tiling(**dict(zip(names[1:], (height, width, *strides), strict=True)))
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


def _second_run(
    pipeline: Any,
    steps: LastSteps,
    codec: Codec,
    clean: torch.Tensor,
    arguments: dict[str, Any],
    generator: torch.Generator | None,
    paths: _Paths,
    stepped: Callable[[int], Any],
    decoding: Callable[[], Any],
) -> np.ndarray:
    """Noise normalised latents (1, C, T, H, W) again and let the pipeline denoise and decode them."""
    from diffusers.utils.torch_utils import randn_tensor

    clean = clean.to(pipeline._execution_device)
    noise = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=torch.float32)
    first = _first_frame(pipeline, codec, arguments)
    latents = _packed(pipeline, codec, clean.clone())

    def begin(scheduler: Any) -> None:
        """Only the pipeline knows at which noise level its last steps begin, and it plans them once it holds the
        latents: they are made where they are."""
        noised = _noised(scheduler, clean, noise)
        if first is not None:
            noised[:, :, :1] = first
        latents.copy_(_packed(pipeline, codec, noised))

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        paths.next_step()
        stepped(step // pipe.scheduler.order + 1)
        if step + 1 == len(pipe.scheduler.timesteps):
            decoding()
        return tensors

    steps.planned = begin
    given = {**arguments, "latents": latents, "output_type": "np", "callback_on_step_end": after_step}
    return pipeline(**given, generator=generator).frames


def _packed(pipeline: Any, codec: Codec, latents: torch.Tensor) -> torch.Tensor:
    """Latents (1, C, T, H, W) as the pipeline takes them."""
    if codec.axes != "packed":
        return latents
    sides = pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
    return pipeline._pack_latents(latents, *sides)


def _noised(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Latents at the noise level of a scheduler's first step."""
    first = scheduler.timesteps[:1]
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(latents, first, noise)
    return scheduler.add_noise(latents, noise, first)


def _first_frame(pipeline: Any, codec: Codec, arguments: dict[str, Any]) -> torch.Tensor | None:
    """The picture that a video starts from as latents (1, C, 1, H, W), of a pipeline that looks for it in the latents
    it is given; None of others, which encode it themselves."""
    picture = arguments.get("image")
    if picture is None or codec.axes != "packed":
        return None
    pixels = pipeline.video_processor.preprocess(picture, height=arguments["height"], width=arguments["width"])
    return codec.encode(pipeline.vae, pixels[:, :, None]).to(pipeline._execution_device)


class _Paths:
    """The two paths of the second pass: which of them a call of a denoiser runs.

    Args:
        pipeline: whose denoisers are called.
        handle: of the patch, None without one.
    """

    def __init__(self, pipeline: Any, handle: Any):
        names = ("transformer", "transformer_2")
        self.models = [model for name in names if (model := getattr(pipeline, name, None)) is not None]
        self.handle = handle
        self.step = self.calls = 0
        self.model: Any = None

    def next_step(self) -> None:
        """A step is made."""
        self.step, self.calls = self.step + 1, 0

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Calls of the denoisers run on the paths that they need."""
        methods = [part.method for part in self.handle.parts] if self.handle is not None else []
        method = next((each for each in methods if isinstance(each, SlidingWindow) and each.dual), None)
        with ExitStack() as stack:
            for model in self.models:
                if method is None:
                    break
                path = DualPath.of(self.handle.cache)
                begin = functools.partial(self._begin, path, method, model, family_of(model).branches)
                stack.enter_context(path.around(model, begin))
            yield

    def _begin(
        self, path: DualPath, method: SlidingWindow, model: Any, branches: tuple[str, ...], inputs: dict[str, Any]
    ) -> dict[str, Any]:
        if model is not self.model:
            path.clear()  # another denoiser's cross-attention means nothing to this one
        self.model = model
        branch = branches[min(self.calls, len(branches) - 1)]
        self.calls += 1
        return path.begin(method, self.step, branch, inputs)
