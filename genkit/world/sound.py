"""Sound of the toy world: struck tones at bounces, starts and stops, pitched by colour and panned by place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genkit.errors import UsageError
from genkit.world.scene import Scene, Tracks, draw_scene
from genkit.world.vocabulary import COLOURS

SAMPLE_RATE = 16000
#: Pitch in Hz of every colour; multiples of 200 so that 10 ms hold whole periods of the tone and of its lower octave.
PITCHES: dict[str, int] = dict(zip(COLOURS, (400, 600, 800, 1000, 1400, 1800, 2200, 2600), strict=True))
DECAYS: dict[str, float] = {"bounce": 0.09, "start": 0.06, "stop": 0.14}
#: A stop sounds an octave below, so that it cannot be taken for a start.
OCTAVES: dict[str, float] = {"bounce": 1.0, "start": 1.0, "stop": 0.5}
_BOUNCE_SHARE = 0.35


@dataclass(frozen=True)
class Event:
    """Something that is heard: when (seconds), what (``bounce``, ``start``, ``stop``), by which colour, pitch in Hz and
    pan from -1 (left edge) to 1 (right edge)."""

    time: float
    kind: str
    colour: str
    pitch: float
    pan: float


def draw_sounding_scene(
    rng: np.random.Generator, split: str = "train", actors: int | None = None, two_share: float = 0.25
) -> Scene:
    """Draw a scene as :func:`genkit.world.scene.draw_scene` does, but in a third of the cases one in which something
    bounces: otherwise few would. About a quarter of all scenes stay silent."""
    bounces = rng.random() < _BOUNCE_SHARE
    while True:
        scene = draw_scene(rng, split, actors=actors, two_share=two_share)
        if not bounces or any(actor.motion == "bounce" for actor in scene.actors):
            return scene


def find_events(scene: Scene, tracks: Tracks, fps: float, width: int) -> list[Event]:
    """Events of a clip in order of time, with sub-frame precision.

    A bounce is a contact with the floor. A start and a stop are the moments at which an actor with a direction begins
    and ends to move; they exist when the clip was laid out with ``holds`` (:func:`genkit.world.scene.lay_out`).
    """
    events = []
    for index, actor in enumerate(scene.actors):
        x = tracks.x[index]
        for frame, kind in tracks.moments[index]:
            pan = float(np.clip(2 * np.interp(frame, np.arange(len(x)), x) / width - 1, -1, 1))
            events.append(Event(frame / fps, kind, actor.colour, PITCHES[actor.colour] * OCTAVES[kind], pan))
    return sorted(events, key=lambda event: event.time)


def render_sound(events: list[Event], seconds: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Mix the events.

    Args:
        events: what is heard; those after the end are cut.
        seconds: length of the sound.
        sample_rate: samples per second, more than twice the highest pitch.

    Returns:
        float32 array (2, samples), left and right, within -1..1.
    """
    if seconds <= 0 or sample_rate <= 2 * max(PITCHES.values()):
        lowest = 2 * max(PITCHES.values())
        raise UsageError(
            f"sound needs a length above 0 s and a rate above {lowest} Hz, got {seconds} s, {sample_rate} Hz"
        )
    wave = np.zeros((2, int(round(seconds * sample_rate))), dtype=np.float64)
    for event in events:
        start = int(round(event.time * sample_rate))
        clock = np.arange(max(wave.shape[1] - start, 0)) / sample_rate
        attack = np.minimum(clock / 0.002, 1.0)
        tone = 0.45 * attack * np.exp(-clock / DECAYS[event.kind]) * np.sin(2 * np.pi * event.pitch * clock)
        angle = (event.pan + 1) * np.pi / 4
        wave[:, start:] += np.stack([np.cos(angle) * tone, np.sin(angle) * tone])
    return np.clip(wave, -1.0, 1.0).astype(np.float32)
