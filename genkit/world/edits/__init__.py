"""Edits with a known right answer: what is given, what is asked for, and the truth that the world draws.

>>> import numpy as np
>>> from genkit.world import edits
>>> case = edits.draw_picture_edit("colour", np.random.default_rng(1))
>>> case.source_prompt
'a pink square on a purple background'
>>> case.target_prompt
'an orange square on a purple background'
>>> edits.judge_edit(case, case.target)["right"], edits.judge_edit(case, case.source)["right"]
(True, False)
"""

from genkit.world.edits.case import CLIP_KINDS, PICTURE_KINDS, ClipEdit, Edit, PictureEdit
from genkit.world.edits.clips import draw_clip_edit
from genkit.world.edits.fills import FILL_KINDS, Fill, draw_fill, judge_fill
from genkit.world.edits.judge import judge_edit, psnr_of_stay
from genkit.world.edits.pictures import draw_picture_edit
from genkit.world.edits.styles import StylePair, draw_style_pair, judge_style, style_distance
from genkit.world.edits.subjects import SubjectSet, draw_subject_set, judge_subjects

__all__ = [
    "CLIP_KINDS",
    "ClipEdit",
    "PictureEdit",
    "FILL_KINDS",
    "PICTURE_KINDS",
    "Edit",
    "Fill",
    "StylePair",
    "SubjectSet",
    "draw_clip_edit",
    "draw_fill",
    "draw_picture_edit",
    "draw_style_pair",
    "draw_subject_set",
    "judge_edit",
    "judge_fill",
    "judge_style",
    "judge_subjects",
    "psnr_of_stay",
    "style_distance",
]
