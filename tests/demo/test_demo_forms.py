"""The demo's forms: settings of a file come back into them as they were, and sessions do not grow with runs."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the demo needs Gradio (make setup-test)")
import gradio as gr  # noqa: E402

from genkit.demo.blocks import Blocks  # noqa: E402
from genkit.demo.engine.desk import Desk  # noqa: E402
from genkit.demo.engine.visitors import Visitors  # noqa: E402
from genkit.demo.options import OWN  # noqa: E402
from genkit.demo.page import Page  # noqa: E402
from genkit.demo.serve import make_offer  # noqa: E402
from genkit.demo.tabs import restore  # noqa: E402
from genkit.pipelines.record import Record  # noqa: E402
from genkit.pipelines.resolve import resolve  # noqa: E402


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("server")
    (root / "gradio").mkdir()
    return Page(make_offer(root, device="cpu"), Visitors(root), Desk())


@pytest.fixture
def pictures(page):
    """What the inputs of the forms hold."""
    folder = page.uploads[0]
    picture, mask = folder / "a.png", folder / "m.png"
    Image.new("RGB", (64, 64), (200, 60, 40)).save(picture)
    Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16)).save(mask)
    return {
        "image": str(picture), "style": str(page.examples[0].path), "mask": str(mask), "clip": None,
        "canvas": {"background": str(picture), "layers": []},
    }  # fmt: skip


def tab_of(page, name):
    return next(each for each in page.tabs if each.name == name)


def plain(value):
    return value["value"] if isinstance(value, dict) and "__type__" in value else value


def asked(page, tab, form, pictures):
    """The settings of a form and all that was left open, as a result stores them."""
    given = {name: pictures.get(name, form[name]) for name in tab.form if name != "keep_seed"}
    (wanted, *_) = tab.settings(given, page.visitors.of(None))
    found = resolve(wanted).settings.to_dict()
    return json.loads(
        json.dumps({name: value for name, value in found.items() if name not in ("image", "mask", "style")})
    )


#: What is typed into forms, by tab; each form is tried as it is, too.
TYPED = {
    "generate": [
        {"steps": "3", "width": "64", "height": "80", "negative_prompt": "dull", "guidance_scale": "2.125"},
        {"attention": "neighborhood", "attention_args": "size=3x5,stride=1x2", "schedule": "steps=1:-1"},
        {"model": "toy-video", "attention": "recipe: toy-video-neighborhood", "num_frames": "9"},
        {"model": "toy-video", "fast": True},
    ],
    "edit": [
        {"preset": preset} for preset in ("material", "shape", "background", "add", "remove")
    ] + [
        {"keep": "0.35", "keep_maps": "0.2", "settle": "0.2", "new_words": "free", "keep_words": "circle, white"},
        {"words": "auto", "strength": "0.8", "steps": "12", "source_guidance_scale": "1.5"},
        {"method": "p2p", "preset": None, "keep": "0.30000001"},
        {"method": "img2img", "preset": None},
    ],
    "inpaint": [{"resample": "3", "feather": "2", "mask_grow": "-1", "mask_invert": True, "context": "7"}],
    "style": [{"keep": 0.5, "strength": 0.25, "temperature": "1.5", "style_prompt": "a b", "prompt": "c"}],
    "consistent": [
        {
            "subjects": "a striped red circle", "keywords": "red circle", "scenes": "a red circle on a gray background",
            "boxes": "0,0.2,0.5,0.9", "text_share": "0.5", "isolation": False, "start": "0.1",
        },
        {"reposition": False, "text_share": "0"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TYPED)
def test_settings_of_a_result_come_back_into_a_form_that_held_others(page, pictures, name):
    tab = tab_of(page, name)
    usual = {each: control.value for each, control in tab.form.items()} | {"seed": 7}
    forms = [usual, *(usual | typed for typed in TYPED[name])]
    stored = [asked(page, tab, form, pictures) for form in forms]
    for index, settings in enumerate(stored):
        other = forms[index - 1]  # what stood in the form before
        filled = {each: plain(value) for each, value in tab.fill(settings).items()}
        assert filled.get("keep_seed", True) is True
        assert asked(page, tab, other | filled, pictures) == settings, TYPED[name][index - 1] if index else "as it is"
        assert tab.not_filled(settings) == []


def test_few_steps_are_offered_for_models_that_have_a_lora_for_them(page, pictures):
    tab = tab_of(page, "generate")
    form = {each: control.value for each, control in tab.form.items()} | {"seed": 7, "fast": True}
    assert tab.form["fast"].visible is False  # the first model has none, and a tick that stays there does nothing
    assert not asked(page, tab, form, pictures).get("fast")
    assert asked(page, tab, form | {"model": "toy-video"}, pictures)["fast"] is True
    assert [tab._model_changed(name, OWN)[-1]["visible"] for name in ("toy-video", "toy-image")] == [True, False]


def test_stop_cannot_be_pressed_while_nothing_runs(page):
    assert [tab.halt.interactive for tab in page.tabs] == [False] * len(page.tabs)


def test_what_a_form_has_no_place_for_is_told(page):
    edit = tab_of(page, "edit")
    settings = {"model": "/models/mine", "prompt": "a", "attention": "no-such", "word_eos": True, "preset": "shape"}
    assert edit.not_filled(settings) == ["Word eos", "Model", "Attention"]
    assert "model" not in edit.fill(settings)


def test_loras_are_told_by_what_is_in_their_files(tmp_path):
    known = {}
    for name in ("one", "two"):
        known[name] = tmp_path / f"{name}.safetensors"
        known[name].write_bytes(name.encode())
    from genkit.reading import file_digest

    prints = [file_digest(known["two"])[:16], "0" * 16]
    record = Record({"lora": ["elsewhere.safetensors@0.5", "other.safetensors"]}, {"lora_fingerprints": prints})
    assert restore.loras(record, known) == {"lora": ["two"], "lora_strength": 0.5}
    assert restore.loras(Record({}), known) == {"lora": [], "lora_strength": 1.0}


def test_a_session_keeps_no_more_components_after_many_runs():
    """Gradio keeps one more for every change of a component that is followed by a plain value."""
    from gradio.state_holder import SessionState

    with Blocks() as blocks:
        box, other = gr.HTML(), gr.Number()
        gr.Button().click(lambda: None, None, [box, other])
    state = SessionState(blocks)
    function = SimpleNamespace(
        outputs=[box, other], batch=False, is_validator_function=False, postprocess=True, name="run"
    )

    async def runs():
        for _ in range(5):
            await blocks.postprocess_data(function, [gr.update(value="a"), gr.skip()], state)
            await blocks.postprocess_data(function, ["b", 3], state)

    begun = len(state.blocks_config.blocks)
    asyncio.run(runs())
    assert len(state.blocks_config.blocks) == begun
    assert len(state.config_values) <= begun and state[box._id].elem_id == box.elem_id


def test_a_result_that_becomes_the_input_brings_the_words_that_are_changed(page, tmp_path):
    """The change of the picture before stayed in the form: a circle of the example for a picture without one."""
    edit = next(tab for tab in page.tabs if tab.name == "edit")
    changes = edit.take_in(tmp_path / "a.png", {"prompt": "a green cross", "model": "toy-image"})
    assert changes[edit.form["source_prompt"]] == changes[edit.form["prompt"]] == "a green cross"
    assert edit.form["prompt"] not in edit.take_in(tmp_path / "a.png", {"prompt": ""})
