"""A language model answers by likelihood: as the plain computation says, on real classes, from local folders alone."""

from __future__ import annotations

import gc
import json
import socket
import weakref

import pytest
import tiny_language_model
import torch
from PIL import Image

from genkit.cli.main import main
from genkit.errors import ArtifactError, GenkitError, UsageError
from genkit.pipelines.instruction import fill
from genkit.pipelines.instruction import language_model as room
from genkit.pipelines.instruction.door import read_instruction
from genkit.pipelines.instruction.files import files_of
from genkit.pipelines.instruction.fill import Answer
from genkit.pipelines.instruction.language_model import LanguageModel, language_model
from genkit.pipelines.settings import GenerateSettings

KINDS = ("llama", "qwen2", "gpt2", "mamba")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place, made = tmp_path_factory.mktemp("language"), {}

    def folder(kind="llama", **more):
        key = f"{kind}-{'-'.join(map(str, more.items()))}"
        if key not in made:
            made[key] = tiny_language_model.folder(place / str(len(made)), kind, **more)
        return made[key]

    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Whoever reaches for the net fails."""
    monkeypatch.chdir(tmp_path)

    def refused(*_, **__):
        raise AssertionError("the net was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for name in ("photo.png", "last.jpg"):
        Image.new("RGB", (64, 64), "red").save(name)


def _plain(reader, text, option):
    """Mean log-likelihood of every token that the option changes, by one pass over the whole."""
    whole = reader._tokens(text + option)
    with torch.no_grad():
        rows = reader.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return whole, rows


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_plain_computation(folders, kind):
    reader = LanguageModel(folders(kind), "tiny", "cpu")
    reader.ask("which role has photo.png?")
    options = ['"first_frame"}', '"last_frame"}', '"keyframe"}', '"subject"}', '"source"}']
    for text in ('{"role": ', '{"role": "last_frame"}, {"role": ', '{"other": ', '{"role": '):  # on, away, and back
        found = reader.scores(text, options)
        rows = [_plain(reader, text, option) for option in options]
        whole = [each[0] for each in rows]
        same = next(n for n in range(len(whole[0])) if len({tokens[n] for tokens in whole}) > 1)
        for value, (tokens, scores) in zip(found, rows, strict=True):
            each = [float(scores[n - 1, tokens[n]]) for n in range(same, len(tokens))]
            assert value == pytest.approx(sum(each) / len(each), abs=1e-4)
        assert len(set(found)) == len(options)


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_the_greedy_one(folders, kind, monkeypatch):
    reader = LanguageModel(folders(kind), "tiny", "cpu")
    reader.ask("what is seen?")
    tokens = reader._tokens('{"prompts": ["')
    made = []
    for _ in range(30):
        with torch.no_grad():
            made.append(
                int(
                    reader.model(input_ids=torch.tensor([[*tokens, *made]]))
                    .logits[0, -1, : len(reader.tokenizer)]
                    .argmax()
                )
            )
    seen = []
    monkeypatch.setattr(room, "_MOST_TOKENS", 30)
    monkeypatch.setattr(room, "_closing", lambda text: seen.append(text))
    monkeypatch.setattr(LanguageModel, "_ends", lambda self: frozenset())
    assert reader.text('{"prompts": ["', 2000) is None and len(seen) == 30
    assert seen == [reader.tokenizer.decode(made[: number + 1]) for number in range(30)]
    monkeypatch.setattr(LanguageModel, "_ends", lambda self: frozenset({made[2]}))
    seen.clear()
    assert reader.text('{"prompts": ["', 2000) is None and len(seen) == made.index(made[2])
    monkeypatch.setattr(room, "_closing", lambda text: 1 if len(text) > 5 else None)
    monkeypatch.setattr(LanguageModel, "_ends", lambda self: frozenset())
    assert reader.text('{"prompts": ["', 2000) == reader.tokenizer.decode(made)[:1]


def test_a_text_ends_at_every_special_token(folders):
    reader = LanguageModel(folders(), "tiny", "cpu")
    assert {reader.tokenizer.decode([each]) for each in reader._ends()} == {
        "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "place"), [('a"b', 1), ('a\\"b"', 4), ('\\\\"', 2), ("a", None), ("a\\", None), ("", None), ('"', 0)]
)
def test_where_a_text_ends(text, place):
    assert room._closing(text) == place


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chat", [False, True])
def test_a_random_model_fills_the_schema(folders, seed, chat):
    """The prompt is written; everything else is chosen among what is allowed."""
    text = "from photo.png to last.jpg in 2 s at frame 8, 128x128 or 64x64, 12 fps"
    made = [
        read_instruction(text, language_model=folders(seed=seed, chat=chat), prompt="a red circle", device="cpu")
        for _ in range(2)
    ]
    assert made[0] == made[1]  # the same every time
    assert made[0].by == str(folders(seed=seed, chat=chat))
    assert [each.path for each in made[0].instruction.inputs] == ["photo.png", "last.jpg"]


def test_random_models_differ(folders):
    text = "from photo.png to last.jpg in 2 s at frame 8, 128x128 or 64x64, 12 fps"
    made = {
        json.dumps(read_instruction(text, language_model=folders(seed=seed), prompt="a").instruction.to_dict())
        for seed in range(6)
    }
    assert len(made) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_prompt_the_answer_holds_or_the_rules_do(folders, kind):
    reading = read_instruction("photo.png waves", language_model=folders(kind), device="cpu")
    assert reading.filled["prompt"] and (reading.by == str(folders(kind)) or reading.by == "the rules")


def test_what_a_model_learned_is_read(folders, monkeypatch):
    """A model of two layers learns one answer by heart; choosing and writing then give that answer."""
    text = "let it move from photo.png to last.jpg in 3 seconds"
    answer = (
        '{"inputs": [{"file": "photo.png", "role": "last_frame"}, {"file": "last.jpg", "role": "first_frame"}], '
        '"frames": null, "seconds": 3, "fps": null, "sound": true, "budget": "memory", '
        '"prompts": ["a red \\"circle\\"", "it moves"]'
    )
    monkeypatch.setattr(fill, "QUESTION", "{instruction}")  # short, to be learned in a moment
    reader = LanguageModel(folders(), "tiny", "cpu")
    settings = GenerateSettings(instruction=text)
    files = files_of(settings)
    reader.ask(text)
    tokens = torch.tensor([reader._tokens(answer)])
    start = len(reader._tokens("")) - 1
    torch.manual_seed(0)
    for each in reader.model.parameters():
        torch.nn.init.normal_(each, std=0.05) if each.ndim > 1 else torch.nn.init.ones_(each)
    optimiser = torch.optim.Adam(reader.model.parameters(), lr=4e-3)
    for _ in range(300):
        scores = reader.model(input_ids=tokens).logits[0, start:-1]
        loss = torch.nn.functional.cross_entropy(scores, tokens[0, start + 1 :])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.002:
            break
    assert loss < 0.02
    made = Answer(reader, settings, files).made()
    assert [(each.path, each.role) for each in made.inputs] == [
        ("photo.png", "last_frame"),
        ("last.jpg", "first_frame"),
    ]
    assert made.prompts == ('a red "circle"', "it moves") and made.seconds == 3 and made.sound
    assert made.budget == "memory" and made.frames is None


def test_the_model_is_gone_afterwards(folders):
    with language_model(str(folders()), "cpu") as reader:
        reader.ask("a")
        reader.scores("{", ["1,", "2,"])
        kept = weakref.ref(reader.model)
        assert not reader.model.training
    gc.collect()
    assert kept() is None


def test_chat_templates_are_used(folders):
    reader = LanguageModel(folders(chat=True), "tiny", "cpu")
    reader.ask("a question")
    assert reader._question == "<|user|>a question<|end|><|assistant|>"
    plain = LanguageModel(folders(), "tiny", "cpu")
    plain.ask("a question")
    assert plain._question == "a question\n"


def _copy(folder, place):
    import shutil

    return shutil.copytree(folder, place)


def _config(place, **changes):
    path = place / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _truncate(place):
    path = place / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def _lacking(place):
    from safetensors.torch import load_file, save_file

    path = place / "model.safetensors"
    state = load_file(path)
    del state[next(name for name in state if "q_proj" in name)]
    save_file(state, path, {"format": "pt"})


def _nan(place):
    from safetensors.torch import load_file, save_file

    path = place / "model.safetensors"
    save_file({name: value * float("nan") for name, value in load_file(path).items()}, path, {"format": "pt"})


def _no_tokenizer(place):
    for path in place.glob("tokenizer*"):
        path.unlink()


def _template(place):
    (place / "chat_template.jinja").write_text("{{ raise_exception('no') }}")


def _larger(place):
    tokens = tiny_language_model.tokenizer()
    tokens.add_tokens([f"extra{n}" for n in range(50)])
    tokens.save_pretrained(place)


DAMAGED = {
    "config is no JSON": (lambda place: (place / "config.json").write_text("{"), "--instruction-model, .* valid JSON"),
    "config is a list": (lambda place: (place / "config.json").write_text("[]"), "architectures: got None"),
    "no config": (lambda place: (place / "config.json").unlink(), "no model of transformers"),
    "another class": (lambda place: _config(place, architectures=["BertForMaskedLM"]), "got 'BertForMaskedLM'"),
    "an encoder": (lambda place: _config(place, architectures=["LlamaModel"]), "got 'LlamaModel'"),
    "code of its own": (
        lambda place: _config(place, architectures=["MyForCausalLM"], auto_map={"AutoModelForCausalLM": "m.My"}),
        "code of a folder is not run",
    ),
    "unknown kind": (lambda place: _config(place, model_type="no_such"), "cannot be loaded"),
    "other sizes": (lambda place: _config(place, hidden_size=64), "of other sizes than its config.json says"),
    "truncated": (_truncate, "cannot be loaded, for its files are damaged"),
    "no weights": (lambda place: (place / "model.safetensors").unlink(), "has no weights"),
    "pickled": (lambda place: (place / "model.safetensors").rename(place / "pytorch_model.bin"), "has no weights"),
    "a weight is missing": (_lacking, "lacks 1 weight, such as '.*q_proj"),
    "no tokenizer": (_no_tokenizer, "has no tokenizer that reads text|cannot be loaded, for its files are damaged"),
    "broken tokenizer": (lambda place: (place / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    "another tokenizer": (_larger, "tokenizer has 409 tokens and the model 400"),
    "weights that are no numbers": (_nan, "no numbers"),
    "broken template": (_template, "its chat template fails"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_folder_is_told_in_a_line(folders, tmp_path, capsys, name):
    damage, message = DAMAGED[name]
    place = _copy(folders(), tmp_path / "model")
    damage(place)
    with pytest.raises(ArtifactError, match=message) as error:
        read_instruction("photo.png waves", language_model=place, device="cpu")
    assert "\n" not in str(error.value)
    capsys.readouterr()
    code = main(["generate", "--instruction", "photo.png waves", "--instruction-model", str(place), "--explain"])
    told = capsys.readouterr()
    assert code == 1 and told.out == "" and sum("error" in line for line in told.err.splitlines()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_without_tokenizer_is_told_whatever_the_kind(folders, tmp_path, kind):
    place = _copy(folders(kind), tmp_path / "model")
    _no_tokenizer(place)
    with pytest.raises(ArtifactError, match=DAMAGED["no tokenizer"][1]):
        read_instruction("photo.png waves", language_model=place, device="cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no-such", "--instruction-model folder ./no-such does not exist"),
        ("nobody/no-such-model", "the cache does not hold nobody/no-such-model"),
        ("toy-video", "toy-video is a Diffusers model"),
        ("photo.png", "photo.png is a file; give the folder of a language model"),
        ("no such", "got 'no such', allowed: the folder of a language model of transformers; a hub id"),
        ("", "--instruction-model"),
    ],
)
def test_a_name_that_is_no_language_model(name, message):
    with pytest.raises(GenkitError, match=message):
        read_instruction("photo.png waves", language_model=name)


def test_more_than_the_model_reads(folders):
    with pytest.raises(UsageError, match=r"--instruction: with what is asked it has \d+ tokens, and .* reads 1024"):
        read_instruction("a " * 2000, language_model=folders(longest=1024))


def test_device_settings_are_kept(folders):
    with pytest.raises(GenkitError, match="device"):
        read_instruction("photo.png waves", language_model=folders(), device="cuda:77")
