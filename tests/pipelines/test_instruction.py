"""An instruction in free words becomes the settings that flags give: by a scripted reader, and by rules."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import genkit
from genkit.cli.main import main
from genkit.errors import GenkitError, UsageError
from genkit.media import write_media
from genkit.pipelines.instruction import language_model
from genkit.pipelines.instruction.door import read, read_instruction
from genkit.pipelines.instruction.files import files_of
from genkit.pipelines.instruction.schema import ROLES, Input, Instruction
from genkit.pipelines.instruction.settings import InstructionSettings
from genkit.pipelines.resolve import resolve
from genkit.pipelines.routes import route_of
from genkit.pipelines.settings import GenerateSettings


@pytest.fixture(autouse=True)
def media(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("photo.png", "last.jpg", "c.png", "my photo.png", "ü.png"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(name)
    write_media("clip.webp", rng.integers(0, 256, (9, 64, 64, 3), np.uint8), 16)
    tmp_path.joinpath("track.json").write_text("{}")
    tmp_path.joinpath("song.wav").write_bytes(b"RIFF")


class Scripted:
    """A reader that wants given values: what it is asked it answers by the name of the field."""

    def __init__(self, **wanted):
        self.wanted, self.asked, self.question, self.written = wanted, [], "", 0

    def ask(self, question):
        self.question = question

    def scores(self, answer, options):
        assert len(set(options)) == len(options) > 1
        wanted = self._wanted(answer, options)
        return [float(re.sub(r"^\[|[,\]}]$", "", option) == wanted) for option in options]

    def _wanted(self, answer, options):
        if options == ["]", ", "]:
            return "" if self.written == len(self.wanted["prompts"]) else ", "
        name = re.findall(r'"(\w+)": (?=[^:]*$)', answer)[-1]
        self.asked.append(name)
        if name in ("role", "frame"):
            file = re.findall(r'"file": "((?:[^"\\]|\\.)*)"', answer)[-1]
            role = self.wanted["roles"][file]
            return (
                json.dumps(role)
                if name == "role" and isinstance(role, str)
                else json.dumps("keyframe" if name == "role" else role)
            )
        if name == "durations":
            values = self.wanted.get("durations")
            return "null" if values is None else json.dumps(values[answer.rpartition('"durations": ')[2].count(",")])
        return json.dumps(self.wanted.get(name, False if name == "sound" else None))

    def text(self, answer, most):
        self.written += 1
        return self.wanted["prompts"][self.written - 1]


@pytest.fixture
def script(monkeypatch):
    """Puts a scripted reader in the place of every language model."""

    def put(**wanted):
        reader = Scripted(**wanted)

        @contextmanager
        def stand_in(name, device=None):
            yield reader

        monkeypatch.setattr(language_model, "language_model", stand_in)
        return reader

    return put


FIRST_LAST = {"photo.png": "first_frame", "last.jpg": "last_frame"}
#: Instruction, what the model wants, settings beside, and the flags that mean the same.
TABLE = {
    "first and last": (
        "make the girl in photo.png wave, two seconds, end on last.jpg",
        {"roles": FIRST_LAST, "seconds": 1, "prompts": ["a girl waves"]}, {},
        {"prompt": "a girl waves", "image": ("photo.png",), "last_image": "last.jpg", "num_frames": 9},
    ),
    "the other way round": (
        "end as in photo.png, begin with last.jpg", {"roles": {"photo.png": "last_frame", "last.jpg": "first_frame"},
        "prompts": ["it moves"]}, {}, {"prompt": "it moves", "image": ("last.jpg",), "last_image": "photo.png"},
    ),
    "text alone": ("a red circle", {"prompts": ["a red circle"]}, {}, {"prompt": "a red circle"}),
    "size and rate": (
        "a red circle, 128x96 at 12 fps, 17 frames",
        {"size": "128x96", "fps": 12, "frames": 17, "prompts": ["a circle"]}, {},
        {"prompt": "a circle", "width": 128, "height": 96, "fps": "12", "num_frames": 17},
    ),
    "keyframe": (
        "photo.png is frame 8", {"roles": {"photo.png": 8}, "prompts": ["a circle"]}, {},
        {"prompt": "a circle", "keyframe": ("8=photo.png",)},
    ),
    "keyframe at the end": (
        "photo.png is frame -1", {"roles": {"photo.png": -1}, "prompts": ["a circle"]}, {},
        {"prompt": "a circle", "keyframe": ("-1=photo.png",)},
    ),
    "continue": (
        "go on with clip.webp", {"roles": {"clip.webp": "source"}, "prompts": ["a circle moves"]}, {},
        {"prompt": "a circle moves", "source_video": "clip.webp"},
    ),
    "two subjects": (
        "photo.png and c.png meet",
        {"roles": {"photo.png": "subject", "c.png": "subject"}, "prompts": ["they meet"]}, {},
        {"prompt": "they meet", "subject": ("photo.png", "c.png")},
    ),
    "scenes": (
        "first a circle, then a square", {"prompts": ["a circle", "a square"]}, {}, {"shots": ("a circle", "a square")},
    ),
    "timed scenes": (
        "a circle for 1.3 s, then a square for 2", {"prompts": ["a circle", "a square"], "durations": [1.3, 2]}, {},
        {"shots": ("a circle@9", "a square@16")},
    ),
    "sound": (
        "a red ball with its sound", {"prompts": ["a red ball"], "sound": True}, {},
        {"prompt": "a red ball", "model": "toy-av"},
    ),
    "fast": (
        "quickly: a red circle", {"prompts": ["a circle"], "budget": "speed"}, {}, {"prompt": "a circle", "fast": True},
    ),
    "little memory": (
        "a circle on my small card", {"prompts": ["a circle"], "budget": "memory"}, {"device": "cpu"},
        {"prompt": "a circle", "vae_tiling": True},
    ),
    "boxes": (
        "a circle along track.json", {"roles": {"track.json": "boxes"}, "prompts": ["a circle"]}, {},
        {"prompt": "a circle", "boxes": "track.json"},
    ),
    "sound given": (
        "a video for song.wav", {"roles": {"song.wav": "sound"}, "prompts": ["a ball"]}, {"model": "toy-av"},
        {"prompt": "a ball", "audio": "song.wav"},
    ),
    "mask and source": (
        "paint the white of c.png anew in clip.webp",
        {"roles": {"c.png": "mask", "clip.webp": "source"}, "prompts": ["a"]}, {},
        {"prompt": "a", "mask": "c.png", "source_video": "clip.webp"},
    ),
    "another language": (
        "让photo.png里的女孩挥手", {"roles": {"photo.png": "first_frame"}, "prompts": ["女孩挥手"]}, {},
        {"prompt": "女孩挥手", "image": ("photo.png",)},
    ),
    "quotes, breaks, blanks": (
        'Sie sagt "hallo"\nin \'my photo.png\' und ü.png.',
        {"roles": {"my photo.png": "first_frame", "ü.png": "last_frame"},
        "prompts": ['she says \\"hallo\\"\nand\\nwaves']}, {},
        {"prompt": 'she says "hallo" and waves', "image": ("my photo.png",), "last_image": "ü.png"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_is_filled_equals_what_flags_say(name, script):
    text, wanted, given, flags = TABLE[name]
    script(**wanted)
    reading = read_instruction(text, language_model="a", **given)
    by_flags = GenerateSettings(**given, **flags)
    assert reading.settings == by_flags and reading.by == "a"
    assert reading.filled == {key: getattr(by_flags, key) for key in flags}
    for field in by_flags.field_names():  # the checks see no difference either
        assert reading.settings.asked(field) == by_flags.asked(field), field
    again = Instruction.from_dict(json.loads(json.dumps(reading.instruction.to_dict())))
    assert again == reading.instruction


def test_the_request_is_that_of_the_flags(script):
    text, wanted, _, flags = TABLE["first and last"]
    script(**wanted)
    filled = resolve(GenerateSettings(instruction=text, instruction_model="a", seed=0))
    flagged = resolve(GenerateSettings(seed=0, **flags))
    assert filled.settings == flagged.settings and filled.task is flagged.task
    assert set(filled.notes) - set(flagged.notes) == set(filled.reading.told)
    route, other = route_of(filled), route_of(flagged)
    assert (route.task, route.inputs, route.because) == (other.task, other.inputs, other.because)
    assert route.task == "flf2v" and route.to_dict()["reading"]["by"] == "a"
    assert "read from --instruction by a: --num-frames 9" in route.lines()


@pytest.mark.parametrize(
    ("given", "named"),
    [({"prompt": "a square"}, "prompts"), ({"num_frames": 17}, "seconds"), ({"fps": "12"}, "fps"),
     ({"width": 96, "height": 96}, "size"), ({"shots": ("a", "b")}, "prompts")],
)  # fmt: skip
def test_what_is_written_wins_and_is_not_asked(script, given, named):
    reader = script(seconds=2, fps=8, size="128x128", prompts=["a circle"], roles=FIRST_LAST)
    reading = read_instruction("photo.png to last.jpg, 128x128 at 8 fps in 2 s", language_model="a", **given)
    for key, value in given.items():
        assert getattr(reading.settings, key) == value and key not in reading.filled
        assert key in reading.written and f"written, so not asked for: --{key.replace('_', '-')}" in reading.lines()
    assert named not in reader.asked and (named == "prompts") == (not reading.instruction.prompts)


def test_a_written_role_is_not_given_again(script):
    reader = script(roles={"last.jpg": "last_frame", "c.png": "subject"}, prompts=["a"])
    reading = read_instruction("from photo.png to last.jpg", ["c.png"], language_model="a", image=("photo.png",))
    assert reading.settings.image == ("photo.png",) and reading.settings.last_image == "last.jpg"
    assert [each.path for each in reading.instruction.inputs] == ["last.jpg", "c.png"]
    assert "photo.png (picture)" not in reader.question.partition("Files: ")[2].rpartition("Files: ")[2]


def test_written_settings_win_over_wishes(script):
    script(prompts=["a"], sound=True, budget="speed")
    reading = read_instruction("a ball with sound, fast", language_model="a", model="toy-video", steps=7)
    assert reading.settings.model == "toy-video" and reading.settings.steps == 7 and not reading.settings.fast
    assert any("--model was written and stays" in line for line in reading.told)
    assert any("--steps was written and stays" in line for line in reading.told)


@pytest.mark.parametrize(
    "raw", [None, "", "  ", "...", "\\u0000", "\\ud800", "\ufffd a", "\\x", "a" * 3000], ids=range(9)
)
def test_an_unusable_answer_leaves_it_to_the_rules(script, raw):
    script(roles=FIRST_LAST, seconds=2, prompts=[raw])
    reading = read_instruction("wave, photo.png, then last.jpg", language_model="a")
    assert reading.by == "the rules" and "a gave no usable answer" in reading.told[0]
    assert reading.settings == read_instruction("wave, photo.png, then last.jpg").settings
    assert reading.filled == {
        "prompt": "wave", "image": ("photo.png",), "last_image": "last.jpg"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "files", "paths"),
    [
        ("wave", (), []),
        ("photo.png.", (), ["photo.png"]),
        ("see (photo.png), 'last.jpg'!", (), ["photo.png", "last.jpg"]),
        ("photo.png and photo.png and ./photo.png", (), ["photo.png"]),
        ("wave", ("c.png", "photo.png"), ["c.png", "photo.png"]),
        ("use photo.png", ("c.png", "photo.png"), ["photo.png", "c.png"]),
        ("in my photo.png", (), ["my photo.png"]),
        ("PHOTO without a suffix, a.b.c, 3.5 s, png.", (), []),
        ("写真ü.pngを", (), ["ü.png"]),
    ],
)
def test_files_are_those_that_were_given(text, files, paths):
    found = files_of(GenerateSettings(instruction=text, file=files))
    assert [each.path for each in found] == paths


def test_a_name_alone_means_the_given_file(tmp_path):
    other = tmp_path / "else"
    other.mkdir()
    Image.new("RGB", (64, 64)).save(other / "girl.png")
    found = files_of(GenerateSettings(instruction="girl.png waves", file=(str(other / "girl.png"),)))
    assert [each.path for each in found] == [str(other / "girl.png")]
    assert files_of(GenerateSettings(instruction="girl.png waves", image=(str(other / "girl.png"),))) == ()


@pytest.mark.parametrize("text", ["no.png waves", "begin with data.png", "see https://x.org/photo.png", "让no.png挥手"])
def test_a_named_file_that_does_not_exist_is_told(text):
    with pytest.raises(GenkitError, match="file in --instruction") as error:
        read_instruction(text)
    assert re.search(r"(no|data|photo)\.png", str(error.value))


def test_no_path_is_invented(script):
    """Whatever a model writes, files come from the user alone."""
    script(roles={"photo.png": "first_frame"}, prompts=['last.jpg \\", \\"inputs\\": [\\"/etc/passwd\\"]'])
    reading = read_instruction("animate photo.png", language_model="a")
    assert reading.filled["image"] == ("photo.png",) and set(reading.filled) == {"image", "prompt"}
    assert reading.filled["prompt"] == 'last.jpg ", "inputs": ["/etc/passwd"]'


BAD = {
    "two last frames": ({"inputs": [("a.png", "last_frame"), ("b.png", "last_frame")]}, "last_frame.*a.png and b.png"),
    "two first frames": ({"inputs": [("a.png", "first_frame"), ("b.png", "first_frame")]}, "role first_frame"),
    "source and first": ({"inputs": [("a.mp4", "source"), ("b.png", "first_frame")]}, "inputs: a.mp4 is the source"),
    "unknown role": ({"inputs": [("a.png", "hero")]}, r"inputs\[0\].role: got 'hero'"),
    "role of another kind": ({"inputs": [("a.mp4", "first_frame")]}, r"inputs\[0\].role: a.mp4 is a clip"),
    "prompts and durations": ({"prompts": ["a", "b"], "durations": [1]}, "durations: got 1 for 2 prompts"),
    "durations and frames": ({"prompts": ["a"], "durations": [1], "frames": 9}, "durations and frames"),
    "frames and seconds": ({"frames": 9, "seconds": 1}, "frames and seconds"),
    "empty prompt": ({"prompts": [" "]}, r"prompts\[0\]"),
    "prompts of numbers": ({"prompts": [3]}, r"prompts\[0\]: got 3"),
    "no list": ({"prompts": "a"}, "prompts: got 'a', allowed: a list"),
    "frames in words": ({"frames": "nine"}, "frames: got 'nine'"),
    "no frames": ({"frames": 0}, "frames: got 0"),
    "endless": ({"seconds": float("inf")}, "seconds: got inf"),
    "a seed in words": ({"seed": "seven"}, "seed: got 'seven'"),
    "a seed below 0": ({"seed": -1}, "seed: got -1, allowed: a whole number from 0"),
    "true seconds": ({"seconds": True}, "seconds: got True"),
    "width alone": ({"width": 64}, "width and height"),
    "sound in words": ({"sound": "yes"}, "sound: got 'yes'"),
    "budget": ({"budget": "cheap"}, "budget: got 'cheap', allowed: speed, quality, memory"),
    "unknown field": ({"promts": ["a"]}, "field of the instruction: got 'promts'.*did you mean 'prompts'"),
    "no mapping": (["a"], "the instruction: got"),
    "unknown field of a file": ({"inputs": [{"file": "a.png"}]}, r"field of inputs\[0\]: got 'file'"),
    "no role": ({"inputs": [{"path": "a.png", "kind": "picture"}]}, r"inputs\[0\]: role is missing"),
    "a keyframe without its frame": ({"inputs": [("a.png", "keyframe")]}, r"inputs\[0\].frame"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_the_schema_names_the_field(name):
    values, message = BAD[name]
    if isinstance(values, dict) and "inputs" in values:
        kinds = {"png": "picture", "mp4": "clip"}
        rows = [
            each if isinstance(each, dict) else {"path": each[0], "kind": kinds[each[0][-3:]], "role": each[1]}
            for each in values["inputs"]
        ]
        values = {**values, "inputs": rows}
    with pytest.raises(UsageError, match=message):
        Instruction.from_dict(values)


def test_every_role_stands_for_a_setting():
    for name, role in ROLES.items():
        for kind, setting in role.settings.items():
            one = Instruction(inputs=(Input("a", kind, name, 3 if name == "keyframe" else None),))
            value = "3=a" if name == "keyframe" else "a"
            assert one.files() in ({setting: value}, {setting: (value,)})
            GenerateSettings(
                **{"ip_adapter": "b"} if name == "style" else {}, **one.files()
            )  # the form is the setting's


@pytest.mark.parametrize(
    ("text", "wanted", "given", "message"),
    [
        (
            "c.png, 10 frames",
            {"roles": {"c.png": "first_frame"}, "frames": 10, "prompts": ["a"]},
            {},
            "--num-frames: got 10",
        ),
        ("90x64", {"size": "90x64", "prompts": ["a"]}, {}, "--width: got 90"),
        ("end on c.png", {"roles": {"c.png": "last_frame"}, "prompts": ["a"]}, {"model": "toy-image"}, "--last-image"),
        ("c.png like edges", {"roles": {"c.png": "control"}, "prompts": ["a"]}, {}, "--control"),
        ("c.png and photo.png", {"roles": {"c.png": "subject", "photo.png": "mask"}, "prompts": ["a"]}, {}, "--mask"),
    ],
)
def test_the_usual_checks_judge_and_say_where_it_comes_from(script, text, wanted, given, message):
    script(**wanted)
    with pytest.raises(GenkitError, match=message) as error:
        resolve(GenerateSettings(instruction=text, instruction_model="a", **given))
    assert "read from --instruction by a: " in str(error.value) and "\n" not in str(error.value)


def test_rules_have_no_role_for_a_third_picture():
    with pytest.raises(UsageError, match=r"c.png: the rules have no role left.*--keyframe"):
        read_instruction("photo.png, last.jpg, c.png")


def test_a_model_without_an_answer_and_rules_without_a_role_are_told_together(script):
    script(roles={"photo.png": "subject", "last.jpg": "subject", "c.png": "subject"}, prompts=[None])
    with pytest.raises(UsageError, match=r"a gave no usable answer \(its prompt has no end\), and by the rules: c.png"):
        read_instruction("photo.png, last.jpg, c.png", language_model="a")


def test_a_picture_beside_a_track_is_the_subject():
    reading = read_instruction("on black, like photo.png along track.json")
    assert (reading.filled["subject"], reading.filled["boxes"]) == (("photo.png",), "track.json")
    assert read_instruction("like photo.png", boxes="track.json").filled["subject"] == ("photo.png",)


def test_a_file_given_twice_has_two_roles():
    reading = read_instruction("a loop", ["photo.png", "photo.png"])
    assert (reading.filled["image"], reading.filled["last_image"]) == (("photo.png",), "photo.png")


def test_an_error_of_a_model_that_was_filled_names_it(script):
    script(roles={"photo.png": "source"}, prompts=["a"], sound=True)
    with pytest.raises(GenkitError, match=r"read from --instruction by a: .*--model toy-av"):
        resolve(GenerateSettings(instruction="a sound", instruction_model="a", source_video="photo.png"))


def test_a_record_is_changed_by_what_is_filled(script):
    script(prompts=["a", "b"])
    before = GenerateSettings.from_mappings(
        ("flags", {"instruction": "first a then b", "instruction_model": "a"}),
        stored=("old.mp4", {"prompt": "a circle", "num_frames": 9, "steps": 5}),
    )
    made = read(before).settings
    assert (made.prompt, made.shots, made.steps) == (None, ("a", "b"), 5) and not made.asked("steps")


def test_a_file_of_a_record_takes_another_role(script, tmp_path):
    script(roles={"photo.png": "first_frame"}, prompts=["a"])
    stored = {"prompt": "b", "image": [str(tmp_path / "last.jpg")], "last_image": str(tmp_path / "photo.png")}
    asked = {"instruction": "from photo.png", "instruction_model": "a"}
    made = read(GenerateSettings.from_mappings(("flags", asked), stored=("old.mp4", stored))).settings
    assert made.image == (str(tmp_path / "photo.png"),)
    assert made.last_image == str(tmp_path / "photo.png") and made.prompt == "a"


def test_python_gives_the_same():
    reading = genkit.read_instruction("photo.png waves")
    assert reading.to_dict() == {
        "by": "the rules",
        "instruction": {"prompts": ["it waves"],
                        "inputs": [{"path": "photo.png", "kind": "picture", "role": "first_frame"}]},
        "filled": {"prompt": "it waves", "image": ["photo.png"]}, "written": [], "taken": ["photo.png"],
    }  # fmt: skip


def _call(capsys, *arguments):
    code = main(["generate", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_file_of_settings_holds_an_instruction(capsys, script, tmp_path):
    script(roles=FIRST_LAST, prompts=["a red circle"])
    tmp_path.joinpath("job.yaml").write_text("instruction: from photo.png to last.jpg\ninstruction_model: a\nseed: 1\n")
    code, out, err = _call(capsys, "--config", "job.yaml", "--explain", "--json")
    assert code == 0, err
    route = json.loads(out)["route"]
    assert route["task"] == "flf2v" and route["reading"]["filled"]["last_image"] == "last.jpg"
    code, out, err = _call(capsys, "--config", "job.yaml", "--prompt", "a square", "--dry-run", "--json")
    assert code == 0, err
    stored = json.loads(out)["outputs"][0]["settings"]
    assert stored["prompt"] == "a square" and stored["image"] and "instruction" not in stored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--file", "photo.png", "-p", "a"), "--file goes with --instruction"),
        (("--instruction-model", "x", "-p", "a"), "--instruction-model goes with --instruction"),
        (("--instruction", "  "), "allowed: a text that says what is wanted"),
        (("--instruction", "a" * 20_001), "--instruction: got 20001 characters"),
        (("--instruction", "a", "--file", "no.png"), "no.png: it does not exist"),
        (("--instruction", "a", "--file", "."), "it is a folder"),
        (("--instruction", "a", "--file", "notes.txt"), "got '.txt', allowed: pictures"),
        (
            ("--instruction", "a", "--prompt-file", "notes.txt"),
            "--instruction says what is seen, as --prompt-file does",
        ),
        (("--instruction", "a\0b"), "NUL"),
    ],
)
def test_wrong_use_is_told_in_a_line(capsys, tmp_path, arguments, message):
    tmp_path.joinpath("notes.txt").write_text("a")
    code, out, err = _call(capsys, *arguments, "--explain")
    errors = [line for line in err.splitlines() if "error" in line]
    assert code in (1, 2) and out == "" and len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize("text", [None, 3, ["a"], b"a"])
def test_python_takes_a_text(text):
    with pytest.raises(UsageError, match="text of read_instruction: got .*, allowed: a text"):
        read_instruction(text)


@pytest.mark.parametrize("files", ["photo.png", Path("photo.png"), ["photo.png"], (Path("photo.png"),)])
def test_python_takes_one_file_or_several(files):
    assert read_instruction("a square", files).filled == {"prompt": "a square", "image": ("photo.png",)}


@pytest.mark.parametrize("name", InstructionSettings.field_names())
def test_what_is_an_argument_in_python_is_not_dropped_as_a_setting(name):
    with pytest.raises(UsageError, match=f"got {name} among the settings; give it as the argument"):
        read_instruction("a", **{name: "photo.png"})


@pytest.mark.parametrize("given", [{"prompt": "a"}, {"shots": ("a", "b")}, {"storyboard": "shots.yaml"}])
def test_whatever_says_what_is_seen_is_told_as_written(tmp_path, given):
    tmp_path.joinpath("shots.yaml").write_text("shots: [a, b]")
    reading = read_instruction("a circle", **given)
    assert reading.written == tuple(given) and not reading.filled


@pytest.mark.parametrize(
    ("device", "filled"), [("cuda", {"offload": "model", "vae_tiling": True}), ("cpu", {"vae_tiling": True})]
)
def test_little_memory_depends_on_the_device(script, monkeypatch, device, filled):
    monkeypatch.setattr("genkit.pipelines.load.resolve_device", lambda name: torch.device(device))
    script(prompts=["a"], budget="memory")
    reading = read_instruction("a, on a small card", language_model="a")
    assert reading.filled == {"prompt": "a", **filled}
    assert any("saves nothing" in line for line in reading.told) == (device == "cpu")
    script(prompts=["a"], budget="memory")
    assert read_instruction("a", language_model="a", offload="sequential").settings.offload == "sequential"
