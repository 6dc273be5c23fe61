"""What is found of a model without weights is what its record says, and a draft is a record that works."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

import genkit
from genkit.cli.main import main
from genkit.families import outside
from genkit.families.lookup import family_of
from genkit.pipelines.explain import explain_model

sys.path.append(str(Path(__file__).parents[1] / "families"))


class MixedAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.n_heads = 2
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class MixedTransformer3DModel(ModelMixin, ConfigMixin):
    """Text before a video's grid in one attention, channels last, patches that the configuration does not tell."""

    @register_to_config
    def __init__(self, in_channels=3, width=16, text_width=6, num_frames=9):
        super().__init__()
        self.patch, self.text = nn.Conv3d(in_channels, width, (1, 2, 2), (1, 2, 2)), nn.Linear(text_width, width)
        self.layers = nn.ModuleList(nn.ModuleDict({"mixer": MixedAttention(width)}) for _ in range(2))
        self.out = nn.Linear(width, in_channels)

    def forward(self, x, context, t):
        x = self.patch(x.movedim(-1, 1))
        size, text = x.shape[2:], self.text(context)
        x = torch.cat([text, x.flatten(2).transpose(1, 2)], dim=1)
        for layer in self.layers:
            x = x + 4 * layer["mixer"](x)
        return self.out(x[:, text.shape[1] :]).unflatten(1, size)


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def folder(tmp_path):
    MixedTransformer3DModel().save_config(tmp_path / "mixed")
    return tmp_path / "mixed"


CLASS = f"{__name__}:MixedTransformer3DModel"


def test_the_draft_of_an_unknown_model_is_a_record_that_works(call, folder):
    code, out, err = call("families", "--explain", folder, "--model-class", CLASS, "--json")
    assert code == 0, err
    found = json.loads(out)["models"][0]
    assert found["record"] == "no record" and found["missing"] == [] and found["text_first"] is True
    assert (found["axes"], found["grid"], found["patch"]) == ("BTHWC", [9, 16, 24], [1, 2, 2])
    assert [(each["role"], each["modules"], each["heads"]) for each in found["attention"]] == [("joint", 2, 2)]
    names: dict = {}
    exec(found["draft"], names)
    family = genkit.register_family(names["FAMILY"])
    try:
        assert (family.heads_attribute, family.projection_names[0], family.text) == ("n_heads", "q_proj", "first")
        torch.manual_seed(0)
        model = MixedTransformer3DModel().eval()
        args = (torch.randn(1, 3, 6, 8, 3), torch.randn(1, 5, 6), torch.tensor([500]))
        with torch.no_grad():
            reference = model(*args)
            with genkit.patch(model, genkit.Neighborhood(size="all"), backend="reference"):
                torch.testing.assert_close(model(*args), reference)
            with genkit.patch(model, genkit.Neighborhood(size=3), backend="reference") as handle:
                assert not torch.allclose(model(*args), reference, atol=1e-3) and handle.report().ran == 2
            assert torch.equal(model(*args), reference)
        layout = family.streams(model, dict(zip(("x", "context", "t"), args, strict=True)))["main"]
        assert layout.grid == (3, 3, 4) and layout.grid_span == (5, 41)
    finally:
        del outside._KNOWN[family.name]


def test_the_page_for_people_tells_the_same(call, folder):
    code, out, _ = call("families", "--explain", folder, "--model-class", CLASS)
    assert code == 0 and "MixedTransformer3DModel (no record)" in out and "token grid 9x16x24" in out
    assert "text tokens come before the grid's" in out and 'SiteRule(r"layers\\.\\d+\\.mixer", "joint")' in out


@pytest.mark.parametrize(
    ("name", "ran"),
    [("chrono_edit", True), ("easyanimate", True), ("bria", True), ("flux2", True), ("motif_video", True),
     ("pixart", True), ("unet_2d", True), ("kandinsky5_tiles", False), ("glm_image", False)],
)  # fmt: skip
def test_what_is_found_is_what_the_record_says(name, ran):
    """Or, where the arguments cannot be guessed, the modules that look like attention, and why no more is known."""
    import zoo

    model = zoo.builders()[name][1]().model.to("meta")
    family, found = family_of(model), explain_model(model)
    sites = {site.path: site.role for site in family.find_sites(model)}
    if not ran:
        assert found.guess is None and "nothing is known about what" in found.missing[0]
        assert all(any(re.fullmatch(pattern, path) for pattern in found.likely) for path in sites)
        return
    roles = {path: group.role for path, _ in model.named_modules() for group in found.groups
             if re.fullmatch(group.pattern, path)}  # fmt: skip
    assert {path: roles.get(path) for path in sites} == sites
    if family.text != "apart":
        assert found.text_first == (family.text == "first")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_argument_that_cannot_be_guessed_is_given_by_its_shape(call, tmp_path):
    import zoo

    zoo.build("glm_image").model.save_config(tmp_path)
    asked = ("families", "--explain", tmp_path, "--json")
    found = json.loads(call(*asked)[1])["models"][0]
    assert "prior_token_id, prior_token_drop, target_size, crop_coords" in found["missing"][0]
    more = [f"--input={text}" for text in ("prior_token_drop=2x4", "target_size=2x2", "crop_coords=2x2")]
    found = json.loads(call(*asked, *more)[1])["models"][0]
    assert "what prior_token_id should be" in found["missing"][0]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--input", "x=2xx"), "NAME=SHAPE"),
        (("--input", "y=2x3"), "arguments of MixedTransformer3DModel: got 'y', allowed: x, context, t"),
        (("--model-class", "no_such_package:X"), "cannot be imported: ModuleNotFoundError"),
        (("--model-class", "json"), "package.module:Class"),
        (("--model-class", "json:JSONDecoder"), "from_config"),
        (("Wan",), "takes a folder and no family"),
    ],
)
def test_wrong_requests_say_what_is_right(call, folder, more, said):
    given = () if "--model-class" in more else ("--model-class", CLASS)
    code, _, err = call("families", "--explain", folder, *given, *more)
    assert code in (1, 2) and said in err


def test_folders_that_hold_no_known_class_say_what_to_do(call, folder, tmp_path):
    assert "--model-class package.module:Class" in call("families", "--explain", folder)[2]
    (tmp_path / "empty").mkdir()
    assert "neither model_index.json nor config.json" in call("families", "--explain", tmp_path / "empty")[2]
    assert "belong to --explain FOLDER" in call("families", "--input", "x=2")[2]


def test_a_pipelines_folder_shows_its_denoisers(call, tiny_wan):
    found = json.loads(call("families", "--explain", tiny_wan, "--json")[1])["models"]
    assert [(each["part"], each["class"]) for each in found] == [("transformer", "WanTransformer3DModel")]
    assert "the record 'Wan' describes it" in found[0]["record"]
    assert [each["role"] for each in found[0]["attention"]] == ["self", "cross"]


@pytest.mark.parametrize(
    "config, told",
    [
        ({"num_layers": 100_000_000}, "num_layers is 100000000, allowed: 0 to 10000"),
        ({"num_layers": -3}, "num_layers is -3, allowed: 0 to 10000"),
        ({"num_layers": 0}, "no attention was found in"),
    ],
)
def test_a_model_without_attention_gets_no_draft(tmp_path, capsys, config, told):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", **config}))
    assert main(["families", "--explain", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert told in printed.err and "FAMILY" not in printed.out
