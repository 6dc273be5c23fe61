"""The toy world: procedural pictures, clips and sounds with captions, and the judge that reads them back.

>>> import numpy as np
>>> from genkit import world
>>> rng = np.random.default_rng(0)
>>> scene = world.draw_scene(rng)
>>> tracks = world.lay_out(scene, frames=17, height=128, width=128, rng=rng)
>>> clip = world.render_clip(scene, tracks, 128, 128)
>>> clip.shape
(17, 128, 128, 3)
>>> picture, placement = world.draw_picture(rng, 128, 128)
>>> world.render_picture(picture, placement, 128, 128).shape
(128, 128, 3)
"""

from genkit.world.caption import caption, sound_words, words
from genkit.world.judge import SeenActor, Verdict, judge_clip, score
from genkit.world.listen import EventScore, Heard, compare_events, listen, match_events
from genkit.world.picture_caption import picture_caption, picture_words
from genkit.world.picture_judge import PictureVerdict, SeenPart, judge_picture, score_picture, seen_relation
from genkit.world.picture_render import render_picture
from genkit.world.picture_scene import Picture, PictureActor, Placement, draw_picture, picture_split
from genkit.world.render import render_clip
from genkit.world.scene import SPLITS, Actor, Scene, Tracks, actor_gap, draw_scene, lay_out, split_of
from genkit.world.sound import Event, draw_sounding_scene, find_events, render_sound
from genkit.world.watch import watch

__all__ = [
    "SPLITS",
    "Actor",
    "Event",
    "EventScore",
    "Heard",
    "Picture",
    "PictureActor",
    "PictureVerdict",
    "Placement",
    "Scene",
    "SeenActor",
    "SeenPart",
    "Tracks",
    "Verdict",
    "actor_gap",
    "caption",
    "compare_events",
    "draw_picture",
    "draw_scene",
    "draw_sounding_scene",
    "find_events",
    "judge_clip",
    "judge_picture",
    "lay_out",
    "listen",
    "match_events",
    "picture_caption",
    "picture_split",
    "picture_words",
    "render_clip",
    "render_picture",
    "render_sound",
    "score",
    "score_picture",
    "seen_relation",
    "sound_words",
    "split_of",
    "watch",
    "words",
]
