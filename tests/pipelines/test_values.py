"""The small functions around a run, on values: outputs as arrays, sound, devices and precisions, prompts, remarks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from genkit.errors import ArtifactError, GenkitError, UnsupportedError, UsageError
from genkit.lora.load import apply_loras
from genkit.lora.match import Matched
from genkit.patching import Schedule
from genkit.pipelines.attention import Attention, _check_branches, parse_schedule, plain
from genkit.pipelines.fits import check_numbers
from genkit.pipelines.kinds import AUDIO_VIDEO, IMAGE, VIDEO
from genkit.pipelines.load import load, resolve_device, resolve_dtype
from genkit.pipelines.outputs import fit_sound, one_sound, to_frames, to_sound
from genkit.pipelines.prompts import _fit, _head, _readers, _unknown_to, _unknown_words, _words
from genkit.pipelines.recipe_match import Match, _default
from genkit.pipelines.recipes import recipe
from genkit.pipelines.record import version
from genkit.pipelines.resolve import Draft
from genkit.pipelines.session import Session
from genkit.pipelines.settings import GenerateSettings

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def output(**fields):
    return SimpleNamespace(**fields)


@pytest.mark.parametrize("shape", [(4, 6, 3), (1, 4, 6, 3), (2, 4, 6, 3), (2, 4, 6, 4), (4, 6, 1), (2, 4, 6, 1)])
def test_frames_have_four_axes_and_three_colours(shape):
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    frames = to_frames(output(images=values[None]), IMAGE)
    assert frames.shape == (*(shape[:-1] if len(shape) == 4 else (1, *shape[:-1])), 3)
    assert np.array_equal(frames, np.broadcast_to(values[..., :3], frames.shape)) and frames.flags["C_CONTIGUOUS"]


def test_frames_are_rounded_and_clipped():
    values = np.array([-0.5, 0.0, 0.001, 0.003, 0.5, 1.0, 2.0, 0.9979, 0.25])
    frames = to_frames(output(frames=[[values.reshape(1, 3, 3)]]), VIDEO)
    assert frames.ravel().tolist() == [0, 0, 0, 1, 128, 255, 255, 254, 64] and frames.dtype == np.uint8


def test_outputs_that_are_no_frames_are_refused():
    for values in (np.zeros((2, 3)), np.zeros((1, 4, 6, 2)), np.zeros((1, 1, 4, 6, 3))):
        with pytest.raises(UnsupportedError, match="of shape"):
            to_frames(output(frames=[values]), VIDEO)
    with pytest.raises(UnsupportedError, match="no frames"):
        to_frames(output(images=None), VIDEO)
    with pytest.raises(ArtifactError, match="[(]25%[)]"):
        to_frames(
            output(frames=[np.array([[[0.0, 0.0, np.nan]], [[0.0, np.inf, 1]], [[0, 0, 0]], [[0.0, 0.0, np.nan]]])]),
            VIDEO,
        )


def test_sound_has_samples_first():
    pipeline = output(vocoder=output(config=output(output_sampling_rate=8000)))
    for given, shape in (((5,), (5, 1)), ((1, 5), (5, 1)), ((2, 5), (5, 2)), ((5, 2), (5, 2)), ((3, 2), (3, 2))):
        values = torch.arange(np.prod(given)).reshape(given)
        sound, rate = one_sound(values, pipeline)
        assert sound.shape == shape and rate == 8000 and sound.dtype == np.float32
        assert sound[1, 0] == (values.T if given[0] <= 2 else values)[1].ravel()[0]
    with pytest.raises(ArtifactError, match="NaN"):
        one_sound(np.array([1.0, np.nan]), pipeline)
    with pytest.raises(UnsupportedError, match="sample rate"):
        one_sound(np.zeros(3), output())
    assert to_sound(output(audio=[np.zeros(3)]), pipeline, VIDEO) == (None, None)
    assert to_sound(output(), pipeline, AUDIO_VIDEO) == (None, None)
    assert to_sound(output(audio=[np.zeros(3), None]), pipeline, AUDIO_VIDEO)[0].shape == (3, 1)


@pytest.mark.parametrize(("length", "kept"), [(3, 3), (10, 10), (40, 20), (20, 20)])
def test_a_sound_is_fitted_to_the_sample(length, kept):
    fitted = fit_sound(np.ones((length, 2), dtype=np.float32), 40, 4, 8)
    assert fitted.shape == (20, 2) and fitted.sum() == 2 * kept and fitted[:kept].all()


@pytest.mark.parametrize("name", ["float32", "fp32", "bf16", torch.bfloat16, torch.float32])
def test_precisions_by_name(name):
    wanted = name if isinstance(name, torch.dtype) else torch.float32 if "32" in name else torch.bfloat16
    assert resolve_dtype(name, CPU) is wanted and resolve_dtype(name, GPU) is wanted


def test_precisions_that_do_not_go():
    assert resolve_dtype(None, CPU) is resolve_dtype("auto", CPU) is torch.float32
    assert resolve_dtype(torch.float16, GPU) is torch.float16
    assert resolve_dtype("auto", torch.device("mps")) is torch.float16
    for bad, error in (("float64", UsageError), (torch.float64, UsageError), ("half", UnsupportedError)):
        with pytest.raises(error):
            resolve_dtype(bad, CPU)


class Tokenizer:
    """Words of a short vocabulary; any other word is the unknown token or, without one, goes by letters."""

    is_fast = True
    all_special_tokens = ("<pad>",)

    def __init__(self, words, unknown=None, limit=10**30):
        self.vocabulary = {word: index for index, word in enumerate(["<pad>", *words])}
        self.unk_token_id, self.model_max_length = unknown, limit

    def __len__(self):
        return len(self.vocabulary)

    def get_vocab(self):
        return self.vocabulary

    def num_special_tokens_to_add(self):
        return 1

    def __call__(self, text, add_special_tokens=True, **_):
        import re

        ids, spans, words = [], [], []
        for number, found in enumerate(re.finditer(r"\S+", text)):
            known = found[0] in self.vocabulary
            cut = [found.span()] if known or self.unk_token_id is not None else [
                (at, at + 1) for at in range(*found.span())
            ]  # fmt: skip
            for span in cut:
                ids.append(
                    self.vocabulary.get(text[slice(*span)], -1 if self.unk_token_id is None else self.unk_token_id)
                )
                spans.append(span)
                words.append(number)
        ids += [0] * add_special_tokens

        class Read(dict):
            def word_ids(self):
                return words

        return Read(input_ids=ids, offset_mapping=spans)


def test_whole_words_of_a_vocabulary():
    assert _words(Tokenizer(["red", "b", "\u2581blue", "\u0120ox", "a1", "<x>"])) == ["blue", "ox", "red"]
    # Where the end of a word is marked, what has no mark is a piece of one.
    assert _words(Tokenizer(["red</w>", "blu", "e</w>"])) == ["red"]


def test_words_that_no_tokenizer_knows_are_told_with_near_ones():
    one, two = Tokenizer(["red", "circle"], unknown=99), Tokenizer(["red", "green"], unknown=99)
    assert _unknown_to(one, "red green square") == {"green", "square"}
    (told,) = _unknown_words("prompt", "red green squre circel", [(one, 9), (two, 9)], ())
    assert told.endswith("of the prompt: circel (it knows circle), squre")
    assert _unknown_words("prompt", "red circle", [(one, 9), (two, 9)], ()) == []
    assert _unknown_words("prompt", "green", [(one, 9), (Tokenizer(["red"]), 9)], ()) == []
    for count, more in ((8, False), (9, True)):
        (told,) = _unknown_words("prompt", " ".join(f"q{chr(97 + index)}x" for index in range(count)), [(one, 99)], ())
        assert told.endswith(", ...") is more and told.count("q") == 8


def test_a_tokenizer_reads_as_far_as_the_least_of_its_limits():
    endless, short = Tokenizer(["red"]), Tokenizer(["red"], limit=77)
    clip = type("CLIPTokenizer", (Tokenizer,), {})(["red"], limit=77)
    parts = {"tokenizer": endless, "tokenizer_2": short, "tokenizer_3": clip, "vae": endless, "tokenizer_4": None}
    assert [limit for _, limit in _readers(parts, None, None)] == [77, 77]
    assert [limit for _, limit in _readers(parts, 16, None)] == [16, 16, 77]
    assert [limit for _, limit in _readers(parts, 16, 8)] == [8, 8, 8]


def test_a_long_prompt_is_refused_or_cut_at_a_token():
    few, many = Tokenizer(["a", "b", "c"]), Tokenizer(["a", "b", "c"])
    cut = []
    assert _fit("prompt", "a b c", [(few, 2), (many, 4)], False, cut) == "a b c" and cut == []
    with pytest.raises(UsageError, match="has 4 tokens, the model reads 3"):
        _fit("prompt", "a b c", [(few, 2), (many, 3)], False, cut)
    assert _fit("prompt", "a b c", [(few, 2), (many, 3)], True, cut) == "a b" and len(cut) == 1
    assert (_head(few, "a b c", 2), _head(few, "a b c", 1), _head(few, "a b c", 0)) == ("a", "", "")
    few.is_fast = False
    assert _head(few, "a b c", 2) == "a b c" and _unknown_to(few, "x") is None


def test_versions():
    assert version("torch") == torch.__version__.split("+")[0] or version("torch") == torch.__version__
    assert version("no-such-package-at-all") == "absent"


def test_defaults_of_a_class_that_a_configuration_leaves_out():
    assert _default("WanTransformer3DModel", "num_layers") == 40
    assert _default("WanTransformer3DModel", "no_such_value") is None
    # An argument without a default has none to offer.
    assert _default("WanTransformer3DModel", "self") is None
    match = Match(("A", "B"), {"sizes": [1, [2]]}, 1)
    assert match.why_not([("A", {"sizes": (1, (2,))})]) is None
    assert "with a denoiser, this one has 2" in match.why_not([("A", {"sizes": (1, (2,))})] * 2)
    assert str(match) == "A or B, sizes=[1, [2]], denoisers=1" and str(Match(("A",))) == "A"


def test_what_a_user_should_know_of_a_patched_run():
    recipe = SimpleNamespace(remark=lambda steps: f"made for others than {steps}")
    report = {"declined": {"too small": 3}, "remarks": ["one"], "ran": 2}
    lines = ["attention: 3 calls ran the model's own attention: too small", "attention: one"]
    own = SimpleNamespace(recipe=None, ranges=None)
    assert Attention.remarks(own, None, 4) == []
    assert Attention.remarks(own, report, 4) == lines
    assert Attention.remarks(own, {**report, "ran": 0}, 4)[2:] == [
        "attention: the method never ran, so this output is the model's own"
    ]
    assert Attention.remarks(SimpleNamespace(recipe=recipe, ranges=None), report, 4)[2:] == ["made for others than 4"]
    assert Attention.remarks(SimpleNamespace(recipe=recipe, ranges={}), report, 4) == lines
    quiet = SimpleNamespace(remark=lambda steps: None)
    assert Attention.remarks(SimpleNamespace(recipe=quiet, ranges=None), report, 4) == lines


def test_schedules_and_reports_as_plain_values():
    assert parse_schedule({"steps": "1:", "branches": "cond,uncond"}) == Schedule(
        steps="1:", branches=["cond", "uncond"]
    )
    assert parse_schedule({"layers": "2"}) == Schedule(layers="2")
    with pytest.raises(GenkitError, match="did you mean 'steps'"):
        parse_schedule({"stepz": "1:"})
    assert plain({1: (True, {2}), "x": 0.5, "y": None}) == {"1": [True, [2]], "x": 0.5, "y": None}


def test_what_settings_say_of_attention():
    def of(**values):
        return Attention.of(GenerateSettings(prompt="a", **values))

    assert of() is None
    plain_one = of(attention="neighborhood", attention_args={"size": "3"})
    assert (plain_one.schedule, plain_one.ranges, plain_one.recommended, plain_one.backend) == (
        None,
        None,
        False,
        "auto",
    )
    assert plain_one.method.name == "neighborhood" and plain_one.args == {"size": "3"}
    later = of(attention="neighborhood", schedule="steps=1:", backend="reference")
    assert (later.schedule, later.ranges, later.backend) == (Schedule(steps="1:"), {"steps": "1:"}, "reference")
    advised = of(attention="radial", schedule="recommended")
    assert (advised.schedule, advised.ranges, advised.recommended) == (None, None, True)
    own, other = (of(recipe="wan2.1-14b-radial", schedule=ranges) for ranges in (None, "steps=2:"))
    assert own.method.parts[0].schedule == Schedule(steps="12:", layers="1:") and own.ranges is None
    assert other.method.parts[0].schedule == Schedule(steps="2:") and other.ranges == {"steps": "2:"}
    with pytest.raises(UsageError, match="a recipe has its own"):
        of(recipe="wan2.1-14b-radial", schedule="recommended")


def test_branches_that_a_run_never_calls_are_refused():
    families = [SimpleNamespace(branches=("cond", "uncond"))]
    _check_branches(None, [], True)
    _check_branches(Schedule(steps="1:"), [], True)
    for branches, guided in (("cond", False), ("cond,uncond", False), ("uncond", True)):
        _check_branches(Schedule(branches=branches), families, guided)
    with pytest.raises(UsageError, match="without guidance"):
        _check_branches(Schedule(branches="uncond"), families, False)
    with pytest.raises(UsageError, match="did you mean 'cond'"):
        _check_branches(Schedule(branches="con"), families, True)
    with pytest.raises(UsageError, match="both halves"):
        _check_branches(Schedule(branches="cond"), [SimpleNamespace(branches=())], True)


def test_counts_out_of_all_proportion(tmp_path):
    for fine in (
        {"num_layers": 10_000},
        {"num_layers": -1},
        {"num_train_timesteps": 10**6},
        {"size": 10**6},
        {"num_x": "y"},
    ):
        check_numbers(tmp_path / "config.json", fine)
    for bad in ({"num_layers": 10_001}, {"num_layers": -2}, {"layers_per_block": [1, 10**5]}, {"depth": 10**9}):
        with pytest.raises(ArtifactError, match="allowed: 0 to 10000"):
            check_numbers(tmp_path / "config.json", bad)


def test_devices_by_name(monkeypatch):
    for cuda, mps, found in ((False, False, "cpu"), (False, True, "mps"), (True, True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert resolve_device("auto") == resolve_device(None) == torch.device(found)
        assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda:1") == torch.device("cuda:1") and resolve_device("cuda") == torch.device("cuda")
    with pytest.raises(UnsupportedError, match="cuda:0 to cuda:1"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for bad, error in (("cuda", UnsupportedError), ("gpu:x", UsageError)):
        with pytest.raises(error):
            resolve_device(bad)


def test_recipes_from_files(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("parts: [{attention: radial}]")
    assert recipe(path).parts[0].method.name == "radial"
    with pytest.raises(ArtifactError, match="does not exist"):
        recipe(tmp_path / "s.yaml")
    with pytest.raises(UsageError, match="a .yaml file"):
        recipe(tmp_path / "r.txt")


def test_a_given_sound_or_video_excludes_the_other():
    assert GenerateSettings(audio="a.wav").audio and GenerateSettings(video="a.mp4").video
    with pytest.raises(UsageError, match="exclude each other"):
        GenerateSettings(audio="a.wav", video="a.mp4")


def test_the_size_that_a_pipeline_chose_is_stored():
    session = SimpleNamespace(request=SimpleNamespace(model=SimpleNamespace(accepted={"height": 0, "width": 0})))
    frames = np.zeros((3, 16, 24, 3))
    stored = Session._stored(session, GenerateSettings(num_videos=4), frames)
    assert (stored.height, stored.width, stored.num_videos) == (16, 24, 1)
    assert Session._stored(session, GenerateSettings(height=8, width=9), frames).to_dict()["width"] == 9
    session.request.model.accepted = {"height": 0}
    assert Session._stored(session, GenerateSettings(), frames).width is None


def test_a_short_vocabulary_without_an_unknown_token_knows_whole_words_only():
    words = [f"word{chr(97 + index)}" for index in range(19)]
    assert _unknown_to(Tokenizer([*words, *"abc"]), "cab") is None
    assert _unknown_to(Tokenizer([*words, "red", *"abc"]), "red cab c1 a ca") == {"cab", "ca"}
    long = [f"a{chr(97 + a)}{chr(97 + b)}{chr(97 + c)}" for a in range(26) for b in range(26) for c in range(6)]
    assert _unknown_to(Tokenizer(long[:3999]), "cab") == {"cab"} and _unknown_to(Tokenizer(long[:4000]), "cab") is None


def draft(given, model, advised=None):
    """A request in the making, without a model's folder."""
    made = Draft.__new__(Draft)
    made.given = made.settings = given
    made.model, made.notes = model, []
    recipe = SimpleNamespace(name="r", settings=advised or {})
    made.attention = None if advised is None else SimpleNamespace(recipe=recipe)
    return made


def stand_in(kind=VIDEO, call=None, defaults=None, **accepted):
    return SimpleNamespace(
        kind=kind, class_name="XPipeline", fps="24", sidecar=SimpleNamespace(call=call or {}, defaults=defaults or {}),
        accepted={name: SimpleNamespace(default=value) for name, value in accepted.items()}, config=lambda part: {},
        shift_name=None, name="x",
    )  # fmt: skip


def test_open_values_come_from_recipe_sidecar_and_pipeline_in_this_order():
    model = stand_in(call={"height": 7}, defaults={"width": 8}, num_inference_steps=50, height=1, width=2, num_frames=3)
    made = draft(GenerateSettings(), model, {"steps": 4})
    made.fill()
    found = made.settings
    assert (found.steps, found.height, found.width, found.num_frames, found.fps) == (4, 7, 8, 3, "24")
    assert made.notes == ["recipe r sets --steps 4"]
    given = draft(GenerateSettings(steps=9, fps="12"), model, {"steps": 4})
    given.fill()
    assert (given.settings.steps, given.settings.fps, given.notes) == (9, "12", [])
    usual = draft(GenerateSettings(), stand_in(defaults={"fps": 30}, num_inference_steps=50))
    usual.fill()
    assert (usual.settings.steps, usual.settings.fps, usual.settings.height) == (50, "30", None)


def test_settings_that_a_pipeline_does_not_take_are_refused():
    with pytest.raises(UsageError, match="--num-frames: XPipeline takes no num_frames"):
        draft(GenerateSettings(num_frames=5), stand_in(height=1)).fill()
    picture = draft(GenerateSettings(), stand_in(IMAGE, defaults={"fps": 30}, height=1))
    picture.fill()
    assert picture.settings.fps is None
    with pytest.raises(UsageError, match="makes images"):
        draft(GenerateSettings(fps="8"), stand_in(IMAGE, height=1)).fill()


def test_a_seed_is_drawn_of_32_bits_where_none_is_given(monkeypatch):
    monkeypatch.setattr("genkit.pipelines.resolve.secrets.randbelow", lambda bound: bound - 1)
    for given, stored in ((None, 2**32 - 1), (0, 0), (5, 5)):
        made = draft(GenerateSettings(seed=given), stand_in())
        made.named, made.device, made.dtype = (), CPU, torch.bfloat16
        made._store({})
        assert (made.settings.seed, made.settings.dtype, made.settings.device) == (stored, "bfloat16", "cpu")


def test_weights_of_a_method_are_looked_for_when_the_folder_is_known(monkeypatch):
    def stop(name, **_):
        raise LookupError(name)

    monkeypatch.setattr("genkit.pipelines.resolve.locate", stop)
    with pytest.raises(LookupError):
        Draft(GenerateSettings(prompt="a", attention="agent", attention_args={"weights": "no-such.safetensors"}))
    with pytest.raises(UsageError, match="attention method"):
        Draft(GenerateSettings(prompt="a", attention="agnet"))


def test_offloading_needs_a_gpu():
    with pytest.raises(UnsupportedError, match="on the CPU they are used where they are"):
        load("toy-video", device="cpu", offload="model")


def test_lora_files_take_effect_together(monkeypatch):
    loaded, chosen = [], []
    monkeypatch.setattr("genkit.lora.load.check_lora", lambda kind: None)
    monkeypatch.setattr("genkit.lora.load.match", lambda _, lora, partial: Matched(lora, [], [], None))
    monkeypatch.setattr("genkit.lora.load._load", lambda _, found, name: loaded.append((found.lora, name)))
    pipeline = SimpleNamespace(
        lora_state_dict=None, set_adapters=lambda names, strengths: chosen.append((names, strengths))
    )
    first, second = SimpleNamespace(strength=0.5), SimpleNamespace(strength=2.0)
    assert apply_loras(pipeline, [first, second]) == []
    assert loaded == [(first, "lora0"), (second, "lora1")] and chosen == [(["lora0", "lora1"], [0.5, 2.0])]
    assert apply_loras(None, ()) == []
