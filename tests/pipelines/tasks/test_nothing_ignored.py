"""Commands that change pictures: what would do nothing is said or refused, and what is read is never written over."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from genkit import media
from genkit.cli.main import main
from genkit.errors import ArtifactError, UnsupportedError, UsageError
from genkit.pipelines.resolve import resolve
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.tasks.consistent.settings import ConsistentSettings
from genkit.pipelines.tasks.edit.settings import EditSettings
from genkit.pipelines.tasks.inpaint.settings import InpaintSettings
from genkit.pipelines.tasks.style.settings import StyleSettings

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 19, 25, 3), dtype=np.uint8)


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def ask(model, picture, **changes):
    fixed = {"image": str(picture), "prompt": "a blue circle", "source_prompt": "a red circle", "seed": 1, "steps": 2}
    return EditSettings(**{**fixed, "model": str(model), **changes})


def notes(settings):
    return "\n".join((request := resolve(settings)).notes + request.prompts.told)


def test_what_has_no_effect_is_said(tiny_sd, picture):
    assert "--source-prompt has no effect" in notes(ask(tiny_sd, picture, method="img2img"))
    assert "--words auto: the prompt has no word" in notes(ask(tiny_sd, picture, prompt="red circle", words=("auto",)))
    assert "--words auto" not in notes(ask(tiny_sd, picture, words=("auto",)))
    both = {"words": ("circle",), "keep_words": ("circle",)}
    assert "--words and --keep-words both name circle" in notes(ask(tiny_sd, picture, **both))
    assert "both name" not in notes(ask(tiny_sd, picture, words=("auto",), keep_words=("circle",)))
    assert "weights in the source prompt have no effect" in notes(
        ask(tiny_sd, picture, source_prompt="a (red:2) circle")
    )
    same = "nothing asks for a change"
    assert same in notes(ask(tiny_sd, picture, prompt="a red circle"))
    assert same not in notes(ask(tiny_sd, picture)) and same not in notes(
        ask(tiny_sd, picture, prompt="a (red:2) circle")
    )
    style = StyleSettings(image=str(picture), style=str(picture), model=str(tiny_sd), prompt="a (blue:2) circle")
    assert "weights such as (red:1.3)" in notes(style)
    assert "weights such as" not in notes(style.replace(prompt="a (blue) circle, note: (a:b)"))
    made = GenerateSettings(prompt="a red circle", model=str(tiny_sd), word_eos=True, word_steps="0:0.5")
    assert "--word-steps, --word-eos: no effect" in notes(made)
    assert "no effect" not in notes(made.replace(prompt="a (red:2) circle"))


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"settle": 1.0}, "--keep-maps 0.7 has no effect: --settle 1"),
        ({"settle": 0.01}, "--settle 0.01 has no effect"),
        ({"settle": 0.5, "words": ("blue",)}, "--words: no effect in 10 steps: --settle 0.5"),
        ({"steps": 2, "words": ("blue",)}, "--words: no effect in 2 steps: too few"),
        ({"steps": 2, "keep_words": ("circle",)}, None),
        ({"keep": 0.1}, "--keep 0.1 has no effect"),
        ({"keep_maps": 0.05}, "--keep-maps 0.05 has no effect"),
        ({"settle": 0.2, "words": ("blue",), "keep": 0.3}, None),
    ],
)
def test_shares_of_the_steps_that_come_to_nothing_are_said(tiny_sd, picture, changes, told):
    found = notes(ask(tiny_sd, picture, **{"steps": 10, **changes}))
    assert told in found if told else "no effect" not in found


def test_a_weight_with_one_bracket_is_said_to_be_text(tiny_sd, picture):
    for prompt in ("a (blue:1.5 circle", "a blue:1.5) circle", "a ((blue:1.5) red:2 circle"):
        assert "a weight has two brackets" in notes(ask(tiny_sd, picture, prompt=prompt)), prompt
    for prompt in (
        "a (blue:1.5) circle (on white",
        "a blue) circle",
        r"a \(blue:1.5 circle",
        "a (blue circle: two of it",
    ):
        assert "brackets" not in notes(ask(tiny_sd, picture, prompt=prompt)), prompt


@pytest.mark.parametrize("method", ["img2img", "flowedit"])
def test_a_preset_that_sets_nothing_is_said(tiny_flux, picture, method):
    """Said, not refused: the demo's form always names a kind of change."""
    request = resolve(ask(tiny_flux, picture, method=method, preset="colour"))
    assert any("--preset colour changes nothing" in line for line in request.notes)
    assert not any("--preset" in line for line in resolve(request.settings).notes)


def test_who_repeats_a_run_is_not_told_again_what_it_did_not_read(tiny_sd, picture):
    request = resolve(ask(tiny_sd, picture, method="img2img"))
    assert any("--source-prompt" in line for line in request.notes) and request.settings.source_prompt is None
    assert not any("--source-prompt" in line for line in resolve(request.settings).notes)


def test_the_share_of_a_portrait_that_is_not_read_is_refused(tiny_sd):
    asked = ConsistentSettings(
        prompt="a red circle", subject=("a red circle",), model=str(tiny_sd), dropout=0.2, reposition=False
    )
    with pytest.raises(UsageError, match="--no-reposition switches off"):
        resolve(asked)


@pytest.mark.parametrize("name", ["word_steps", "word_frames"])
def test_shares_of_word_weights_are_checked_without_weights(name):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: got 'junk'"):
        GenerateSettings(prompt="a red circle", **{name: "junk"})


def refused(capsys, *arguments):
    code = main([*map(str, arguments), "--dry-run"])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert code in (1, 2) and "unexpected" not in line
    return line


def test_what_is_read_is_not_written_over(tiny_sd, picture, tmp_path, capsys):
    mask, folder = tmp_path / "mask.png", tmp_path / "frames"
    Image.fromarray(np.full((19, 25), 255, np.uint8)).save(mask)
    media.write_media(folder, PIXELS, settings={"command": "generate", "settings": {}})
    prompts = ["--source-prompt", "a", "-p", "b", "--model", tiny_sd, "--force"]
    assert "would replace what the run reads (--image" in refused(capsys, "edit", picture, *prompts, "-o", picture)
    frame = folder / "frame-0000.png"
    assert "would replace" in refused(capsys, "edit", frame, *prompts, "-o", folder)
    painted = refused(capsys, "inpaint", picture, "--mask", mask, *prompts[2:], "-o", mask)
    assert "would replace what the run reads (--mask" in painted


def test_every_prompt_of_a_file_is_checked_before_the_first_output(tiny_sd, picture, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a blue circle\na green circle\n")
    given = ["--prompt-file", prompts, "--model", tiny_sd, "-o", tmp_path / "o.png"]
    assert "'blue'" in refused(capsys, "edit", picture, "--source-prompt", "a circle", "--words", "blue", *given)
    assert "does not name 'blue circle'" in refused(capsys, "consistent", "--subject", "a blue circle", *given)
    assert "not both" in refused(capsys, "consistent", "--subject", "a circle", "--scene", "a circle", *given)


@pytest.mark.parametrize("command", ["edit", "inpaint", "style"])
def test_paths_that_nobody_can_have(command, capsys):
    other = {"inpaint": ["--mask", "x.png"], "style": ["--style", "x.png"]}.get(command, [])
    assert "IMAGE" in refused(capsys, command, "~nobody-here/x.png", *other, "-p", "a")


def test_an_output_that_cannot_hold_the_edit_is_refused_before_it_is_made(tiny_wan, tmp_path):
    pictures = [Image.fromarray(frame) for frame in PIXELS]
    pictures[0].save(tmp_path / "odd.gif", save_all=True, append_images=pictures[1:], duration=100)
    ask_odd = ask(tiny_wan, tmp_path / "odd.gif", max_sequence_length=16)
    for output in (str(tmp_path / "o.mp4"), None):
        with pytest.raises(UsageError, match="even width and height for .mp4"):
            resolve(ask_odd.replace(output=output))
    assert resolve(ask_odd.replace(output=str(tmp_path / "o.mp4"), enlarge=2))
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    media.write_mp4(tmp_path / "loud.mp4", frames, 8, audio=np.zeros(10_000, np.float32), sample_rate=16_000)
    with pytest.raises(UsageError, match="has sound, which only .mp4 holds"):
        resolve(ask(tiny_wan, tmp_path / "loud.mp4", max_sequence_length=16, output=str(tmp_path / "o.gif")))


def test_a_picture_that_becomes_a_clip_gets_the_rate_of_the_model(tiny_wan, picture, tmp_path):
    request = resolve(ask(tiny_wan, picture, max_sequence_length=16, output=str(tmp_path / "o.gif")))
    assert request.inputs.fps is not None and "tells no frame rate" in "\n".join(request.notes)


def test_a_picture_out_of_all_proportion_says_what_is_allowed(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(ArtifactError, match="has 400000000 pixels, allowed: .* make it smaller"):
        media.read_image(tmp_path / "huge.png")


def test_the_beginning_of_a_picture_named_like_a_clip(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "x.png")
    (tmp_path / "x.mp4").write_bytes((tmp_path / "x.png").read_bytes()[:100])
    with pytest.raises(ArtifactError, match="as video or sound: (?!Operation not permitted)"):
        media.probe_video(tmp_path / "x.mp4")


def test_a_method_of_attention_on_layers_that_the_command_controls(tiny_sd, picture, tmp_path):
    same = "--attention sliding_window: .* works on the same layers; leave --attention out"
    for method in ("infedit", "p2p", "vimaedit"):
        with pytest.raises(UsageError, match=f"{same}, or take --method img2img"):
            resolve(ask(tiny_sd, picture, method=method, attention="sliding_window"))
    assert resolve(ask(tiny_sd, picture, method="img2img", attention="sliding_window"))
    style = StyleSettings(image=str(picture), style=str(picture), model=str(tiny_sd), attention="sliding_window")
    with pytest.raises(UsageError, match=same):
        resolve(style)
    paint = InpaintSettings(
        image=str(picture), mask=str(picture), prompt="a", model=str(tiny_sd), attention="sliding_window"
    )
    with pytest.raises(UsageError, match=f"{same} or take --painta 0"):
        resolve(paint)
    assert resolve(paint.replace(painta=0.0))


def test_a_schedule_that_leaves_a_layer_to_both_is_refused_before_weights(tiny_sd, tiny_flux, picture):
    same = "--attention sliding_window: .* works on the same layers of .*, in whatever steps; leave --attention out"
    edit = {"attention": "sliding_window", "schedule": "steps=1:"}
    for method in ("infedit", "p2p", "vimaedit"):
        with pytest.raises(UsageError, match=same):
            resolve(ask(tiny_sd, picture, method=method, **edit))
    free = {"keep": 0.0, "keep_maps": 0.5, "words": ("none",), "method": "infedit", **edit}
    assert resolve(ask(tiny_sd, picture, **free))  # maps of words are cross-attention, the method is on the other
    with pytest.raises(UsageError, match=same):
        resolve(ask(tiny_flux, picture, **free))  # in joint attention the two are one
    style = StyleSettings(
        image=str(picture), style=str(picture), model=str(tiny_sd), attention="sliding_window", schedule="layers=0"
    )
    assert resolve(style)
    with pytest.raises(UsageError, match=same):
        resolve(style.replace(schedule="layers=1:"))
    with pytest.raises(UsageError, match="style_layers: got 'nowhere'"):
        resolve(style.replace(style_layers="nowhere"))
    paint = InpaintSettings(
        image=str(picture), mask=str(picture), prompt="a", model=str(tiny_sd), attention="sliding_window",
        schedule="steps=1:",
    )  # fmt: skip
    with pytest.raises(UsageError, match=same):
        resolve(paint)


def test_layers_of_the_style_that_the_model_does_not_have(tiny_sd, picture):
    asked = StyleSettings(image=str(picture), style=str(picture), model=str(tiny_sd), steps=1, style_layers="nothing")
    with pytest.raises(UsageError, match="style_layers: got 'nothing', allowed: .* such as .*attn1"):
        Session(resolve(asked)).run()


def test_a_picture_below_the_smallest_size_is_edited_at_that_size(tiny_sd, picture):
    request = resolve(ask(tiny_sd, picture, method="img2img"))
    given = request.inputs
    height, width, _ = given.size
    assert given.padded.shape == (1, height, width, 3) and np.array_equal(given.padded[:, :19, :25], PIXELS[:1])
    small = replace(given, canvas=replace(given.canvas, size=(height + 16, width + 16)))
    shapes = []
    session = Session(replace(request, inputs=small))
    made = session.run(latents=lambda latents: shapes.append(latents.shape[-2:]))
    assert made.frames.shape == (1, 19, 25, 3)
    assert set(shapes) == {((height + 16) // 2, (width + 16) // 2)}  # tiny_sd's latents have half the pixels' sides


def test_more_steps_than_the_model_was_trained_with(tiny_sd, picture):
    with pytest.raises(UsageError, match="refuses an argument: .*1001 cannot be larger"):
        Session(resolve(ask(tiny_sd, picture, method="img2img", steps=1001, strength=0.001))).run()


def test_vimaedit_of_a_clip_is_refused_before_weights_are_read(tiny_wan, picture):
    with pytest.raises(UnsupportedError, match="--method vimaedit takes models of pictures"):
        resolve(ask(tiny_wan, picture, method="vimaedit", max_sequence_length=16))
