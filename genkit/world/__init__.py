"""The toy world: procedural pictures, clips and sounds with captions, and the judge that reads them back.

>>> import numpy as np
>>> from genkit import world
>>> rng = np.random.default_rng(0)
>>> scene = world.draw_scene(rng)
>>> tracks = world.lay_out(scene, frames=17, height=128, width=128, rng=rng)
>>> clip = world.render_clip(scene, tracks, 128, 128)
>>> clip.shape
(17, 128, 128, 3)
"""

from genkit.world.caption import caption, words
from genkit.world.judge import SeenActor, Verdict, judge_clip, score
from genkit.world.listen import EventScore, Heard, compare_events, listen
from genkit.world.render import render_clip
from genkit.world.scene import SPLITS, Actor, Scene, Tracks, actor_gap, draw_scene, lay_out, split_of
from genkit.world.sound import Event, find_events, render_sound

__all__ = [
    "SPLITS",
    "Actor",
    "Event",
    "EventScore",
    "Heard",
    "Scene",
    "SeenActor",
    "Tracks",
    "Verdict",
    "actor_gap",
    "caption",
    "compare_events",
    "draw_scene",
    "find_events",
    "judge_clip",
    "lay_out",
    "listen",
    "render_clip",
    "render_sound",
    "score",
    "split_of",
    "words",
]
