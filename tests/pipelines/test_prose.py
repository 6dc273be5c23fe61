"""Which settings are words for a model: those refuse what is no whole character, names of files hold any bytes."""

from __future__ import annotations

import dataclasses

import pytest

from genkit.errors import UsageError
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.consistent.settings import ConsistentSettings
from genkit.pipelines.tasks.edit.settings import EditSettings
from genkit.pipelines.tasks.inpaint.settings import InpaintSettings
from genkit.pipelines.tasks.style.settings import StyleSettings
from genkit.training.distill.settings import DistillSettings
from genkit.training.lora.settings import LoraSettings

KINDS = [GenerateSettings, EditSettings, InpaintSettings, StyleSettings, ConsistentSettings, LoraSettings,
         DistillSettings]  # fmt: skip
#: Names that say "words" and are none for a model.
NOT = {"prompts", "word_form", "word_steps", "word_frames", "word_sampling", "new_words", "caption_extension",
       "image_prompt"}  # fmt: skip
#: Settings of one kind that name files, where those of another are words.
FILES = {(GenerateSettings, "subject")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_text_that_a_model_reads_is_marked(kind):
    named = ("prompt", "word", "caption", "subject", "scene")
    texts = {
        field.name: field.metadata["prose"]
        for field in dataclasses.fields(kind)
        if "str" in str(field.type)
        and any(each in field.name for each in named)
        and field.name not in NOT
        and (kind, field.name) not in FILES
    }
    assert texts and all(texts.values()), texts


def test_names_of_files_may_hold_any_bytes():
    assert EditSettings(image="bad\udcff.png", output="bad\udcff-2.png").image == "bad\udcff.png"
    with pytest.raises(UsageError, match="allowed: a text in UTF-8; what was given holds bytes"):
        ConsistentSettings(subject=("a red cat",), scene=("a red cat", "a red \udcff cat"))
