"""The demo without a browser: visitors, jobs, previews, uploads, and what a desk makes of settings."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from genkit.demo.engine import desk as desk_module
from genkit.demo.engine.desk import Desk
from genkit.demo.engine.difference import heat
from genkit.demo.engine.job import Job
from genkit.demo.engine.kept import kept
from genkit.demo.engine.messages import for_visitor, told
from genkit.demo.engine.pictures import marked, take
from genkit.demo.engine.preview import Preview, pattern
from genkit.demo.engine.stored import stored_settings
from genkit.demo.engine.visitors import KEPT, Entry, Visitors
from genkit.errors import ArtifactError, GenkitError, UsageError
from genkit.evaluation.metrics import psnr, ssim
from genkit.media.canvas import Mask
from genkit.media.files import read_settings
from genkit.pipelines.load import load
from genkit.pipelines.settings import GenerateSettings


@pytest.fixture
def visitors(tmp_path):
    return Visitors(tmp_path)


@pytest.fixture(scope="module")
def desk():
    made = Desk()
    yield made
    made.close()


def ask(folder, **changes):
    return GenerateSettings(**{"prompt": "a red circle", "model": str(folder), "seed": 1, "steps": 3, **changes})


def ended(job, seconds=120):
    limit = time.monotonic() + seconds
    for state in job.watch(0.5):
        assert time.monotonic() < limit, state
    return state


def test_a_visitor_is_known_by_a_secret_name_and_nobody_by_a_wrong_one(visitors):
    first = visitors.of(None)
    assert visitors.of(first.token) is first
    for wrong in ("", "0" * 32, first.token.upper() + "x", "../" + first.token, 7, None):
        assert visitors.of(wrong) is not first
    assert first.folder.stat().st_mode & 0o077 == 0
    program = visitors.name_of("a session")
    assert visitors.of(program) is visitors.of(visitors.name_of("a session")) is not first
    assert visitors.of(program).token == program != visitors.name_of("another")
    assert program != Visitors(visitors.root).name_of("a session")  # nobody computes it elsewhere


def test_a_visitor_expires_with_all_files_unless_something_is_being_made(tmp_path):
    now = [0.0]
    visitors = Visitors(tmp_path, expires=10, clock=lambda: now[0])
    idle, busy = visitors.of(None), visitors.of(None)
    (idle.folder / "picture.png").write_bytes(b"x")
    busy.job = Job()
    now[0] = 11.0
    visitors.sweep()
    assert not idle.folder.exists() and busy.folder.exists()
    assert visitors.of(idle.token) is not idle


def test_the_visitor_not_heard_of_for_the_longest_makes_room(tmp_path):
    now = [0.0]
    visitors = Visitors(tmp_path, most=2, clock=lambda: now[0])
    first = visitors.of(None)
    for now[0] in (1.0, 2.0):
        visitors.of(None)
    assert len(visitors) == 2 and not first.folder.exists()


def test_the_oldest_results_are_deleted_beyond_the_number_that_is_kept(visitors):
    visitor = visitors.of(None)
    paths = [visitor.new_file(".png") for _ in range(KEPT + 1)]
    for path in paths:
        path.write_bytes(b"x")
        visitor.keep(Entry(path, "", "generate", {}))
    assert not paths[0].exists() and paths[1].exists() and len(visitor.entries) == KEPT


def test_a_path_outside_of_the_visitors_folder_is_refused(visitors):
    one, other = visitors.of(None), visitors.of(None)
    for path in ("/etc/passwd", one.folder / ".." / other.folder.name / "a.png", other.folder / "a.png"):
        with pytest.raises(UsageError, match="none of yours"):
            one.inside(path)
    (one.folder / "link.png").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="none of yours"):
        one.inside(one.folder / "link.png")


def test_an_upload_is_copied_once_it_is_known_to_be_a_picture(visitors, tmp_path):
    visitor, uploads = visitors.of(None), tmp_path / "uploads"
    uploads.mkdir()
    Image.new("RGB", (8, 6), "red").save(uploads / "a.png")
    copy = take(visitor, uploads / "a.png", "Picture", (uploads,))
    assert copy.parent == visitor.folder and copy.read_bytes() == (uploads / "a.png").read_bytes()
    with pytest.raises(UsageError, match="only pictures that you upload"):
        take(visitor, tmp_path / "b.png", "Picture", (uploads,))
    (uploads / "c.png").write_bytes(b"no picture")
    with pytest.raises(ArtifactError, match="Picture"):
        take(visitor, uploads / "c.png", "Picture", (uploads,))


def test_a_decompression_bomb_is_refused_before_it_is_decoded(visitors, tmp_path, monkeypatch):
    visitor = visitors.of(None)
    bomb = visitor.folder / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    monkeypatch.setattr(Image.Image, "convert", lambda *given: pytest.fail("it was decoded"))
    with pytest.raises(ArtifactError, match="20000x20000|400000000 pixels"):
        take(visitor, bomb, "Picture")


def test_watchers_see_every_state_or_the_newest_and_the_end():
    job = Job()
    job.tell(step=1)
    states = job.watch()
    assert next(states).step == 1
    job.tell(step=2)
    job.tell(step=3)
    assert next(states).step == 3
    job.tell(phase="done")
    assert next(states).ended and next(states, None) is None


def test_messages_name_what_the_page_shows_and_never_a_fault_inside():
    assert for_visitor("--guidance-scale: got 0, allowed: 1 to 2") == "“Guidance”: got 0, allowed: 1 to 2"
    assert for_visitor("the mask genkit-46d62d45744c03cf.png has 9 pixels") == "The mask has 9 pixels"
    assert "secret" not in told(RuntimeError("secret"))
    assert len(told(UsageError("x" * 5000))) < 500


def test_the_preview_shows_the_colours_of_what_the_latents_stand_for():
    pipeline = load("toy-image")
    preview = Preview.fit(pipeline)
    import torch

    from genkit.families.training.base import Media
    from genkit.families.training.lookup import training_of

    picture = pattern(99, 128)  # none of those it was fitted to
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[:, None] * 2 - 1
    with torch.no_grad():
        latents = training_of(pipeline).encode(pipeline, Media(pixels), None)["image"][None]
    shown = preview(latents)
    assert shown.shape == (256, 256, 3) and shown.dtype == np.uint8
    small = np.asarray(Image.fromarray(shown).resize((16, 16), Image.Resampling.BOX), dtype=float) / 255
    wanted = picture.reshape(16, 8, 16, 8, 3).mean((1, 3))
    assert np.corrcoef(small.ravel(), wanted.ravel())[0, 1] > 0.9


def test_previews_of_clips_and_packed_latents_have_the_grid_of_their_tokens():
    preview = Preview(np.eye(5, 3, dtype=np.float32))
    import torch

    assert preview(torch.zeros(1, 4, 3, 6, 8)).shape == (192, 256, 3)
    assert preview(torch.zeros(2, 12, 16), (1, 3, 4)).shape == (192, 256, 3)
    packed = torch.zeros(1, 4, 16)
    packed[0, 1] = torch.arange(16) // 4 == 0  # the first channel of the second token
    shown = preview(packed, (1, 2, 2))
    assert shown[32, 192, 0] > 200 and shown[192, 32, 0] < 50
    assert preview(torch.zeros(1, 12, 16), None) is None and preview(torch.zeros(1, 7, 6, 8)) is None


def test_a_result_lies_in_its_visitors_folder_with_settings_and_no_place_of_the_server(desk, visitors, tiny_sd):
    visitor = visitors.of(None)
    state = ended(desk.start(visitor, "generate", [ask(tiny_sd), ask(tiny_sd, seed=2)]))
    assert state.phase == "done" and len(state.made) == 2 and state.share == 1
    first = state.made[0]
    assert first.path.parent == visitor.folder
    record = read_settings(first.path)
    assert record["command"] == "generate" and record["settings"]["seed"] == 1
    assert stored_settings(first.path) == ("generate", record["settings"])
    assert str(visitors.root) not in json.dumps(record)
    assert [entry.path for entry in visitor.entries] == [made.path for made in state.made]


def test_the_model_stays_for_the_next_run_and_another_one_frees_it(desk, visitors, tiny_sd, tiny_wan, monkeypatch):
    visitor = visitors.of(None)
    worker = desk.worker("cpu")
    ended(desk.start(visitor, "generate", [ask(tiny_sd)]))
    session = worker.session
    ended(desk.start(visitor, "generate", [ask(tiny_sd, prompt="two squares")]))
    assert worker.session.pipeline is session.pipeline
    session = worker.session  # one a request, of the same loaded model
    state = ended(desk.start(visitor, "generate", [ask(tiny_wan)]))
    assert state.phase == "done" and worker.session is not session and session.pipeline is None


def test_a_stop_ends_within_one_step_and_the_next_run_is_whole(desk, visitors, tiny_sd):
    visitor = visitors.of(None)
    whole = ended(desk.start(visitor, "generate", [ask(tiny_sd)])).made[0]
    job = desk.start(visitor, "generate", [ask(tiny_sd, steps=500)])
    for state in job.watch():
        if state.step >= 2:
            break
    job.stop()
    final = ended(job)
    assert final.phase == "stopped" and final.step < state.step + 25 and not final.made
    again = ended(desk.start(visitor, "generate", [ask(tiny_sd)])).made[0]
    first, second = (np.asarray(Image.open(each.path)) for each in (whole, again))
    assert np.array_equal(first, second)


def test_a_wrong_setting_and_a_fault_end_as_messages_and_the_desk_serves_on(desk, visitors, tiny_sd, monkeypatch):
    visitor = visitors.of(None)
    state = ended(desk.start(visitor, "generate", [ask(tiny_sd, width=63)]))
    assert state.phase == "failed" and "63" in state.message
    with monkeypatch.context() as patched:
        patched.setattr(desk_module, "write", lambda *given: 1 / 0)
        state = ended(desk.start(visitor, "generate", [ask(tiny_sd)]))
    assert state.phase == "failed" and "ZeroDivisionError" in state.message
    assert ended(desk.start(visitor, "generate", [ask(tiny_sd)])).phase == "done"


def test_a_second_request_of_a_visitor_stops_the_first_wherever_it_is(desk, visitors, tiny_sd):
    visitor = visitors.of(None)
    early = desk.start(visitor, "generate", [ask(tiny_sd, steps=500)])
    running = desk.start(visitor, "generate", [ask(tiny_sd, steps=500)])
    assert next(state.phase for state in running.watch(0.5) if state.phase in ("steps", "done", "failed")) == "steps"
    last = desk.start(visitor, "generate", [ask(tiny_sd)])
    assert ended(last).phase == "done"
    assert [ended(job).phase for job in (early, running)] == ["stopped", "stopped"]
    assert len(visitor.entries) == 1


def test_what_stayed_is_counted_outside_the_mask_and_measured_on_all_pixels_without_one():
    before = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    after, inside = before.copy(), np.zeros((16, 16), bool)
    inside[:4] = True
    after[0, :4] ^= 255
    painted = SimpleNamespace(picture=before[0], mask=Mask(inside))
    assert kept(painted, after) == {"outside the mask": "all 192 pixels equal"}
    after[0, 9, 9, 1] ^= 1
    assert kept(painted, after) == {"outside the mask": "1 of 192 pixels differ"}
    edited = SimpleNamespace(frames=before)
    measured = kept(edited, after)["like the input, all pixels"]
    assert measured == f"PSNR {psnr(before, after):.1f} dB, SSIM {ssim(before, after):.2f}"
    assert kept(edited, before) == {"like the input": "every pixel equal"}
    assert kept(edited, after[:, :8]) == kept(None, after) == {}


@pytest.mark.parametrize(
    "record",
    [
        {"command": "edit", "settings": {"prompt": ["a"], "steps": {"a": 1}}},
        {"command": "generate", "settings": {"prompt": "a", "seed": "x"}},
        {"command": 7, "settings": {"prompt": "a"}},
        {"command": "train", "settings": {"prompt": "a"}},
        {"command": "generate", "settings": [1, 2]},
    ],
)
def test_settings_of_a_file_that_no_command_takes_are_refused_before_the_page_shows_them(record, tmp_path):
    path = tmp_path / "given.json"
    path.write_text(json.dumps(record))
    with pytest.raises(GenkitError):
        stored_settings(path)


def test_the_mask_is_shown_in_the_colour_of_the_brush_and_the_rest_grey():
    picture = np.full((8, 8, 3), (220, 30, 30), np.uint8)
    inside = np.zeros((8, 8), bool)
    inside[:, :4] = True
    shown = marked(picture, Mask(inside)).astype(int)
    assert np.ptp(shown[0, 7]) < 30 < np.ptp(shown[0, 0])
    between = marked(picture, Mask(inside, feather=3)).astype(int)
    assert np.array_equal(between[0, 7], shown[0, 7]) and not np.array_equal(between[0, 3], shown[0, 3])


def test_the_difference_is_dark_where_nothing_changed():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    other = frames.copy()
    other[:, 1, 1] = 255
    shown = heat(frames, other)
    assert shown[1, 1].sum() > 600 and shown[0, 0].sum() < 60


def test_the_compare_tab_tells_the_numbers_of_genkit_compare():
    from genkit.demo.tabs.compare import _apart
    from genkit.evaluation.metrics import psnr, ssim

    rng = np.random.default_rng(0)
    own = rng.integers(0, 200, (3, 40, 40, 3), dtype=np.uint8)
    other = own + rng.integers(0, 30, own.shape, dtype=np.uint8)
    assert _apart(own, own) == [("compared with the model's own", "equal")]
    told = dict(_apart(own, other))
    assert told["PSNR to the model's own"] == f"{psnr(own, other):.1f} dB"
    assert told["SSIM to the model's own"] == f"{ssim(own, other):.3f}"
    assert told["compared with the model's own"] in ("same trajectory", "scene kept", "diverged")


def test_where_a_compared_method_begins_is_left_to_recipes_and_to_people():
    from genkit.demo.options import RECIPE
    from genkit.demo.tabs.compare import suited_where

    assert (
        suited_where("radial", "") == suited_where("radial", None) == suited_where("radial", "steps=5:") == "steps=5:"
    )
    assert suited_where(f"{RECIPE}some", "steps=5:") == ""
    for chosen in ("radial", f"{RECIPE}some"):
        assert suited_where(chosen, "layers=1:") == "layers=1:"


@pytest.mark.parametrize(
    ("steps", "wanted"), [("", "steps=5:"), ("8", "steps=5:"), (7, "steps=1:"), ("2", "steps=1:"), ("1", "")]
)
def test_a_compared_method_has_a_step_in_runs_of_few_steps(steps, wanted):
    from genkit.demo.options import RECIPE
    from genkit.demo.tabs.compare import fitting_where, suited_where

    assert suited_where("radial", "", steps, "toy-image") == wanted
    assert fitting_where("radial", "steps=5:", steps, "toy-image") == wanted
    assert fitting_where("radial", "steps=1:", steps, "toy-image") == ("" if steps == "1" else "steps=1:")
    for own in ("", None, "steps=3:", "layers=1:"):  # what a visitor wrote, or took away
        assert fitting_where("radial", own, steps, "toy-image") == own
    assert fitting_where(f"{RECIPE}some", "steps=5:", steps, "toy-image") == "steps=5:"
