"""How well a model's video and sound of the toy world agree with the prompt and with each other, by the judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from genkit.evaluation.toy import Accuracy, judge_clips
from genkit.models.registry import locate
from genkit.models.sidecar import read_sidecar
from genkit.pipelines.outputs import fit_sound, one_sound
from genkit.pipelines.tasks.audio_video.given import Given
from genkit.world.caption import caption
from genkit.world.judge import judge_clip
from genkit.world.listen import Heard, listen, match_events, same_pitch, same_side
from genkit.world.render import render_clip
from genkit.world.scene import Scene, lay_out
from genkit.world.sound import SAMPLE_RATE, Event, draw_sounding_scene, find_events, render_sound
from genkit.world.watch import watch


@dataclass(frozen=True)
class SoundClip:
    """A clip with its sound: frames uint8 (T, H, W, 3), and float32 (samples, 2) at ``rate``."""

    frames: np.ndarray
    sound: np.ndarray
    rate: int = SAMPLE_RATE


@dataclass(frozen=True)
class SoundRequest:
    """Size and sampling of evaluation clips; the defaults are those of toy-av's sidecar.

    Args:
        num_frames, height, width, fps: of the clips.
        steps: denoising steps.
        batch: prompts per call.
        call: further arguments of the pipeline's call.
        sound: kind of spectrogram, see :func:`genkit.families.sound_features.features_of`.
    """

    num_frames: int = 25
    height: int = 128
    width: int = 128
    fps: float = 8.0
    steps: int = 20
    batch: int = 2
    call: dict = field(default_factory=dict)
    sound: str | None = "tones"

    @classmethod
    def of_model(cls, model: str, **changes: Any) -> SoundRequest:
        """A request with the guidance, text length and further arguments that the model's ``genkit.json`` names."""
        sidecar = read_sidecar(locate(model).path)
        names = ("guidance_scale", "max_sequence_length", "negative_prompt")
        given = {name: sidecar.defaults[name] for name in names if name in sidecar.defaults}
        return cls(call={**given, **sidecar.call}, sound=sidecar.sound, **changes)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the pipeline's call."""
        return {
            "num_frames": self.num_frames, "height": self.height, "width": self.width, "frame_rate": self.fps,
            "num_inference_steps": self.steps, "output_type": "np", **self.call,
        }  # fmt: skip


@dataclass(frozen=True)
class Sync:
    """Agreement of what is heard with what is seen, over all events of many clips.

    Args:
        f1: of events, 1 when everything that is seen is heard and nothing else.
        offset: signed median of heard minus seen in seconds, the analysers' own bias subtracted; nan without a match.
        pitch, side: share of matched events that sound at the pitch of the object's colour and on its side.
        silence: share of the clips without a visible event in which nothing is heard; nan without such a clip.
        seen, heard: events in all.
    """

    f1: float
    offset: float
    pitch: float
    side: float
    silence: float
    seen: int
    heard: int


def draw_sound_prompts(split: str, count: int, seed: int = 0, actors: int | None = 1) -> list[tuple[Scene, str]]:
    """Scenes of one split, most of them with events, and their canonical captions; the same for the same seed."""
    rng = np.random.default_rng(seed)
    scenes = [draw_sounding_scene(rng, split, actors) for _ in range(count)]
    return [(scene, caption(scene)) for scene in scenes]


def true_clips(scenes: Sequence[Scene], request: SoundRequest, seed: int = 0) -> list[tuple[SoundClip, list[Event]]]:
    """Scenes as the world draws and plays them, with their events."""
    rng = np.random.default_rng(seed)
    size = (request.num_frames, request.height, request.width)
    found = []
    for scene in scenes:
        tracks = lay_out(scene, *size, rng, holds=True)
        events = find_events(scene, tracks, request.fps, request.width)
        wave = render_sound(events, request.num_frames / request.fps)
        found.append((SoundClip(render_clip(scene, tracks, *size[1:]), wave.T), events))
    return found


def generate_sound_clips(
    pipeline: Any,
    captions: Sequence[str],
    request: SoundRequest,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[SoundClip], float]:
    """Run a pipeline that makes video and sound; clip ``i`` starts from the noise of seed ``seed + i``.

    Returns:
        The clips and the wall seconds spent in the pipeline.
    """
    import torch

    found: list[SoundClip] = []
    seconds = 0.0
    for start in range(0, len(captions), request.batch):
        part = list(captions[start : start + request.batch])
        device = pipeline._execution_device
        generators = [torch.Generator(device).manual_seed(seed + start + i) for i in range(len(part))]
        seconds -= time.perf_counter()
        output = pipeline(part, generator=generators, **request.arguments)
        seconds += time.perf_counter()
        frames = (np.asarray(output.frames) * 255).round().astype(np.uint8)
        for clip, wave in zip(frames, output.audio, strict=True):
            sound, rate = one_sound(wave, pipeline)
            found.append(SoundClip(clip, fit_sound(sound, rate, len(clip), request.fps), rate))
        if progress:
            progress(len(found), len(captions))
    return found, seconds


def coded_clips(pipeline: Any, clips: Sequence[SoundClip], request: SoundRequest) -> list[SoundClip]:
    """Clips after a pipeline's autoencoders and its vocoder: what is lost before a model makes any mistake."""
    import torch

    from genkit.families.sound_features import features_of
    from genkit.pipelines.tasks.audio_video.complete import code_sound, code_video

    features = features_of(pipeline, request.sound)
    found = []
    for clip in clips:
        with torch.no_grad():
            frames = np.asarray(code_video(pipeline, clip.frames)[0])
            wave = code_sound(pipeline, clip.sound, clip.rate, features)[0]
        sound, rate = one_sound(wave, pipeline)
        sound = fit_sound(sound, rate, len(clip.frames), request.fps)
        found.append(SoundClip((frames * 255).round().astype(np.uint8), sound, rate))
    return found


def complete_clips(
    pipeline: Any,
    captions: Sequence[str],
    clips: Sequence[SoundClip],
    request: SoundRequest,
    keep: str,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[SoundClip], float]:
    """Let a pipeline make the other half of clips.

    Args:
        pipeline: with LTX-2's classes.
        captions: one per clip.
        clips: whose sound or video is given.
        request: size and sampling.
        keep: ``"audio"`` or ``"video"``: what is given.
        seed: of the first clip.
        progress: called with (done, total).
    """
    import torch

    from genkit.families.sound_features import features_of
    from genkit.pipelines.tasks.audio_video.complete import complete

    features = features_of(pipeline, request.sound)
    found: list[SoundClip] = []
    seconds = 0.0
    for index, (text, clip) in enumerate(zip(captions, clips, strict=True)):
        given = Given(sound=clip.sound, rate=clip.rate) if keep == "audio" else Given(frames=clip.frames)
        generator = torch.Generator(pipeline._execution_device).manual_seed(seed + index)
        seconds -= time.perf_counter()
        output = complete(pipeline, given, features, prompt=text, generator=generator, **request.arguments)
        seconds += time.perf_counter()
        if keep == "audio":
            made = SoundClip((np.asarray(output.frames[0]) * 255).round().astype(np.uint8), clip.sound, clip.rate)
        else:
            sound, rate = one_sound(output.audio[0], pipeline)
            made = SoundClip(clip.frames, fit_sound(sound, rate, len(clip.frames), request.fps), rate)
        found.append(made)
        if progress:
            progress(len(found), len(captions))
    return found, seconds


def seen_and_heard(clip: SoundClip, fps: float) -> tuple[list[Event], list[Heard]]:
    """What the judge sees happen in a clip, and what it hears."""
    return watch(judge_clip(clip.frames), fps, clip.frames.shape[2]), listen(clip.sound.T, clip.rate)


def measure_sync(pairs: Iterable[tuple[Sequence[Event], Sequence[Heard]]], bias: float = 0.0) -> Sync:
    """Agreement over all events of many clips.

    Args:
        pairs: from :func:`seen_and_heard`, one per clip.
        bias: offset in seconds that the analysers find where there is none, see :func:`own_bias`.
    """
    matched, quiet, seen, heard = [], [], 0, 0
    for happening, sounding in pairs:
        matched += match_events(happening, sounding)
        seen, heard = seen + len(happening), heard + len(sounding)
        if not happening:
            quiet.append(not sounding)
    nothing = float("nan")
    offsets = [sound.time - sight.time for sight, sound in matched]
    return Sync(
        f1=2 * len(matched) / (seen + heard) if seen + heard else 1.0,
        offset=float(np.median(offsets)) - bias if matched else nothing,
        pitch=float(np.mean([same_pitch(sound, sight) for sight, sound in matched])) if matched else nothing,
        side=float(np.mean([same_side(sight, sound) for sight, sound in matched])) if matched else nothing,
        silence=float(np.mean(quiet)) if quiet else nothing,
        seen=seen,
        heard=heard,
    )


def own_bias(request: SoundRequest, count: int = 40, seed: int = 5) -> float:
    """Median offset in seconds that eyes and ears find in clips of the world itself, where there is none."""
    scenes = [scene for scene, _ in draw_sound_prompts("train", count, seed)]
    clips = [clip for clip, _ in true_clips(scenes, request, seed)]
    offset = measure_sync(seen_and_heard(clip, request.fps) for clip in clips).offset
    return 0.0 if np.isnan(offset) else offset


def judge_sound_clips(
    scenes: Sequence[Scene], clips: Sequence[SoundClip], request: SoundRequest, bias: float = 0.0
) -> tuple[Accuracy, Sync]:
    """What is seen against the prompt, and what is heard against what is seen."""
    accuracy, _ = judge_clips(scenes, np.stack([clip.frames for clip in clips]))
    return accuracy, measure_sync((seen_and_heard(clip, request.fps) for clip in clips), bias)
