"""The table of tasks and families is what requests are taken for, on folders of real classes; decisions say why."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_pipelines
from PIL import Image

import genkit
from genkit.cli.main import main
from genkit.errors import GenkitError
from genkit.families.lookup import can, records
from genkit.media import write_media
from genkit.models import locate
from genkit.pipelines.model import Model
from genkit.pipelines.resolve import resolve
from genkit.pipelines.routes import TASKS, classes_of, missing, route_of, table, tasks_of
from genkit.pipelines.settings import GenerateSettings
from genkit.pipelines.task import commands
from genkit.pipelines.tasks.inputs.serving import others, taken_by

BUILDERS = {
    "wan": lambda: tiny_pipelines.wan(),
    "wan image": lambda: tiny_pipelines.wan_image("2.1"),
    "wan first and last": lambda: tiny_pipelines.wan_image("first and last"),
    "vace": tiny_pipelines.wan_vace,
    "cogvideox": lambda: tiny_pipelines.cogvideox("cogvideox"),
    "hunyuan video": tiny_pipelines.hunyuan_video,
    "ltx": tiny_pipelines.ltx,
    "sdxl": tiny_pipelines.stable_diffusion_xl,
    "sd3": tiny_pipelines.stable_diffusion_3,
    "kontext": tiny_pipelines.flux_kontext,
}
#: Task -> what asks for it.
ASKED = {
    "t2i": {}, "t2v": {}, "i2i": {"image": ("a.png",)}, "i2v": {"image": ("a.png",)}, "ref2x": {"image": ("a.png",)},
    "flf2v": {"image": ("a.png",), "last_image": "a.png"}, "keyframes": {"keyframe": ("0=a.png",)},
    "v2v": {"source_video": "clip.webp"}, "control": {"control": ("clip.webp",)},
    "continuation": {"source_video": "clip.webp"}, "boxes": {"boxes": "track.json"},
    "multi_prompt": {"prompt": None, "num_frames": 17, "tile_frames": 9, "shots": ("a red circle", "a green circle")},
}  # fmt: skip
#: Kinds of input that a task needs a class to take.
KINDS = {"i2i": "image", "i2v": "image", "ref2x": "image", "flf2v": "last_image", "keyframes": "keyframe",
         "v2v": "source_video", "control": "control"}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place, made = tmp_path_factory.mktemp("routes"), {}

    def folder(name):
        if name not in made:
            pipeline = BUILDERS[name]()
            pipeline.save_pretrained(place / name)
            if can("boxes", type(pipeline).__name__):
                with genkit.patch(pipeline, genkit.MotionBoxes(width=2, rank=2)) as patch:
                    patch.weights.save(place / name / "motion_boxes.safetensors")
            made[name] = place / name
        return made[name]

    return folder


@pytest.fixture(autouse=True)
def media(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save("a.png")
    rows = [{"frame": frame, "box": [0.1, 0.1, 0.6, 0.6]} for frame in (0, 8)]
    tmp_path.joinpath("track.json").write_text(json.dumps({"units": "shares", "boxes": rows}))
    write_media("clip.webp", rng.integers(0, 256, (9, 32, 32, 3), np.uint8), 16)


def _resolved(folder, task):
    model = str(folder)
    fixed = {"model": model, "prompt": "a red circle", "seed": 0, "steps": 4, "height": 32, "width": 32}
    # VACE continues a clip that is shorter than what is made; the others change all of it.
    moving = {"num_frames": 17} if task == "v2v" and folder.name == "vace" else {}
    if (
        task == "multi_prompt"
        and "image" in taken_by(Model.at(locate(model), model).pipeline_class, lambda part: {}).needs
    ):
        moving = {"image": ("a.png",)}  # models from a first frame chain their shots
    moving |= {"num_frames": 9} if "video" in Model.at(locate(model), model).kind.name and task != "v2v" else {}
    return resolve(GenerateSettings(**fixed | moving | ASKED[task]))


@pytest.mark.parametrize("name", BUILDERS)
def test_the_table_is_what_requests_are_taken_for(name, folders):
    model = Model.at(locate(str(folders(name))), name)
    kinds = [model.pipeline_class, *others(model)]
    told = {task for kind in kinds for task in tasks_of(kind)}
    refused = {kind for each in kinds for kind in taken_by(each, model.config).refused}
    told -= {task for task, kind in KINDS.items() if kind in refused}
    # Pictures that are followed through an adapter or by reference attention are asked for by other flags.
    looked_at = any(taken_by(kind, model.config).told.looks for kind in kinds)
    told -= set() if looked_at else {"ref2x"}
    taken, why = set(), {}
    for task in ASKED:
        try:
            request = _resolved(folders(name), task)
        except GenkitError as error:
            why[task] = str(error)
            continue
        route = route_of(request)
        if route.task == task:
            taken.add(task)
            assert route.pipeline == request.model.class_name and route.because
    assert taken == told & set(ASKED), {task: why.get(task) for task in taken ^ told & set(ASKED)}


def test_every_family_of_the_table_has_its_classes():
    made = table()
    for family in records():
        names = {name for found in made.get(family.name, {}).values() for name in found}
        assert names <= {kind.__name__ for kind in classes_of(family)}
        assert all(task in TASKS for task in made.get(family.name, {}))
    assert made["Wan"]["multi_prompt"] == ("WanPipeline", "WanImageToVideoPipeline", "WanGivenFramesPipeline")
    assert made["Wan"]["continuation"] == ("WanGivenFramesPipeline",)
    assert "WanGivenFramesPipeline" in made["Wan"]["flf2v"]
    assert not {name for tasks in made.values() for found in tasks.values() for name in found} & set(missing())


def test_the_command_prints_the_table_and_one_family(capsys):
    assert main(["families", "--tasks", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["families"] == json.loads(json.dumps(table())) and told["tasks"] == TASKS
    assert main(["families", "CogVideoX", "--tasks"]) == 0
    assert "multi_prompt" in capsys.readouterr().out
    assert main(["families", "--tasks", "Nobody"]) == 2


def test_a_decision_is_told_and_nothing_is_made(capsys, tmp_path):
    arguments = ["generate", "a red circle", "--image", "a.png", "--last-image", "a.png", "--explain"]
    assert main([*arguments, "--json"]) == 0
    route = json.loads(capsys.readouterr().out)["route"]
    assert route["task"] == "flf2v" and route["pipeline"] == "WanGivenFramesPipeline"
    assert [each["role"] for each in route["inputs"]] == ["first frame", "last frame"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "task: flf2v" in out and "because: a last frame is given" in out
    assert {each.name for each in tmp_path.iterdir()} == {"a.png", "clip.webp", "track.json"}


@pytest.mark.parametrize(
    "flags, task",
    [
        ([], "t2v"),
        (["--model", "toy-av"], "t2av"),
        (["--model", "toy-av", "--keyframe", "0=a.png"], "keyframes"),
        (["--model", "toy-image", "--image", "a.png"], "i2i"),
        (["--model", "toy-image", "--image", "a.png", "--mask", "a.png"], "inpaint"),
        (["--upscale", "2"], "upscale"),
    ],
)
def test_decisions_of_shipped_models(flags, task, capsys):
    assert main(["generate", "a red circle", *flags, "--explain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["route"]["task"] == task


@pytest.mark.parametrize(
    "words, roles, because",
    [
        (["edit", "a.png", "--source-prompt", "a red circle", "--prompt", "a blue circle", "--method", "flowedit"],
         {"IMAGE": "picture or clip that is changed"}, "--method flowedit"),
        (["inpaint", "a.png", "--mask", "a.png", "--prompt", "a red circle"],
         {"IMAGE": "picture that is repainted", "--mask": "mask of what is made anew"}, "genkit inpaint is for this"),
        (["style", "a.png", "--style", "a.png"],
         {"IMAGE": "picture that keeps its things", "--style": "picture whose manner is taken"}, "genkit style is for"),
    ],
)  # fmt: skip
def test_other_commands_tell_what_plays_which_role(words, roles, because, capsys):
    model = ["--model", "toy-dit"] if "flowedit" in words else []
    assert main([*words, *model, "--explain", "--json"]) == 0
    route = json.loads(capsys.readouterr().out)["route"]
    assert {each["flag"]: each["role"] for each in route["inputs"]} == roles
    assert any(line.startswith(because) for line in route["because"])
    assert main([*words, *model, "--explain"]) == 0
    assert f"task: {words[0]} ({commands()[words[0]].help})" in capsys.readouterr().out


def test_a_decision_is_told_where_the_output_exists(capsys, tmp_path):
    arguments = ["generate", "a red circle", "--output", "clip.webp", "--explain"]
    before = (tmp_path / "clip.webp").read_bytes()
    assert main(arguments) == 0 and (tmp_path / "clip.webp").read_bytes() == before
    assert main([*arguments[:-1], "--dry-run"]) == 2
