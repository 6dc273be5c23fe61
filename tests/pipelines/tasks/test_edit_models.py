"""Which models ``genkit edit`` takes is told before weights are read, whatever the family."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tiny_pipelines
from PIL import Image

from genkit.cli.main import main
from genkit.errors import GenkitError, UnsupportedError
from genkit.families.lookup import records
from genkit.families.prompts import readings_of
from genkit.families.training.lookup import why_not_called
from genkit.media import write_media
from genkit.pipelines.resolve import resolve
from genkit.pipelines.tasks.edit.settings import EditSettings

#: The pipelines of every family of video models, from text and otherwise.
PIPELINES = sorted({name for family in records() if family.kind == "video" for name in family.pipelines})
#: Pipelines of which there is a tiny one: those that edits cannot use, with what is said; the others run.
TINY = {
    "motif_video": (tiny_pipelines.motif_video, "take --method flowedit or img2img, infedit with --keep 0"),
    "motif_pictures": (lambda: tiny_pipelines.motif_video(pictures=True), "which genkit edit cannot give it"),
    "wan": (tiny_pipelines.wan, None),
    "wan_pictures": (lambda: tiny_pipelines.wan_image("first and last"), "which genkit edit cannot give it"),
    "cogvideox_pictures": (tiny_pipelines.cogvideox_image, "which genkit edit cannot give it"),
    "ltx": (tiny_pipelines.ltx, None),
    "ltx_pictures": (lambda: tiny_pipelines.ltx(pictures=True), "which genkit edit cannot give it"),
}


@pytest.fixture
def clip(tmp_path):
    frames = np.repeat(np.arange(5, dtype=np.uint8) * 40, 64 * 64 * 3).reshape(5, 64, 64, 3)
    write_media(tmp_path / "clip.gif", frames, 10)
    return tmp_path / "clip.gif"


@pytest.fixture
def no_weights(monkeypatch):
    """Weights must not be read."""
    import diffusers
    import safetensors
    import safetensors.torch

    def forbidden(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", forbidden)
    monkeypatch.setattr(safetensors.torch, "load_file", forbidden)
    monkeypatch.setattr(safetensors, "safe_open", forbidden)


def ask(folder, clip, **changes):
    given = {"image": str(clip), "prompt": "a blue circle", "source_prompt": "a red circle", "steps": 2, "seed": 1}
    return EditSettings(**{**given, "model": str(folder), **changes})


@pytest.mark.parametrize("name", TINY)
def test_what_edits_cannot_use_is_told_before_weights_are_read(name, tmp_path, clip, monkeypatch, request):
    build, reason = TINY[name]
    pipe = build()
    pipe.save_pretrained(tmp_path / name)
    request.getfixturevalue("no_weights")
    if reason is None:
        assert resolve(ask(tmp_path / name, clip)).settings.method == "infedit"
        return
    with pytest.raises(UnsupportedError, match=reason):
        resolve(ask(tmp_path / name, clip))
    if name == "motif_video":
        for method in ("flowedit", "img2img"):
            assert resolve(ask(tmp_path / name, clip, method=method)).settings.method == method
        assert resolve(ask(tmp_path / name, clip, method="infedit", keep=0.0, keep_maps=0.0))


@pytest.mark.parametrize(("channels", "reason"), [(9, "was made to inpaint and reads a mask"), (7, "reads 7 channels")])
def test_a_checkpoint_that_reads_more_is_told_as_the_loaded_one(channels, reason, tiny_sd, tmp_path, request):
    """Of a class that edits can use; the configuration tells."""
    from diffusers import UNet2DConditionModel

    folder = shutil.copytree(tiny_sd, tmp_path / "model")
    config = json.loads((folder / "unet/config.json").read_text())
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": channels}).save_pretrained(folder / "unet")
    request.getfixturevalue("no_weights")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "cat.png")
    with pytest.raises(UnsupportedError, match=reason):
        resolve(ask(folder, tmp_path / "cat.png"))


@pytest.mark.parametrize("method", ["infedit", "p2p", "flowedit", "img2img"])
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_every_video_pipeline_is_served_or_refused_before_weights(
    pipeline, method, tiny_wan, tmp_path, clip, no_weights
):
    """Each class in the place of a tiny Wan's: what is refused is refused in one line, as the records say."""
    folder = shutil.copytree(tiny_wan, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline}))
    reads = method in ("flowedit", "img2img") or readings_of(pipeline) is not None
    try:
        request = resolve(ask(folder, clip, method=method))
    except GenkitError as error:
        assert "\n" not in str(error)
        if "its configurations do not fit it" in str(error):  # the parts are Wan's
            assert why_not_called(pipeline) is None
        elif why_not_called(pipeline) is not None:
            assert pipeline in str(error)
        elif not reads:
            assert "take --method" in str(error) or pipeline in str(error)
        return
    assert why_not_called(pipeline) is None and reads and request.settings.method == method


def test_the_command_ends_with_one_line_and_leaves_nothing(tmp_path, clip, monkeypatch, capsys, request):
    tiny_pipelines.motif_video().save_pretrained(tmp_path / "motif")
    request.getfixturevalue("no_weights")
    monkeypatch.chdir(tmp_path)
    words = ["--prompt", "a blue circle", "--source-prompt", "a red circle", "--model", "motif", "-o", "a.gif"]
    assert main(["edit", "clip.gif", *words]) == 1
    told = capsys.readouterr().err.splitlines()
    assert sum("error" in line for line in told) == 1 and "take --method flowedit or img2img" in told[-1]
    assert not (tmp_path / "a.gif").exists()
