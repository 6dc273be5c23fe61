"""The worked example "A package of one's own" of CONTRIBUTING.md as it is written, beside packages that are broken."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED_BLOCK = re.compile(r"^`([\w/.-]+)`:\n\n(?:<!--[^\n]*-->\n)?```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SCRIPT = """
import contextlib, io, json, sys, warnings
import genkit
done = {"light": sorted({"genkit.plugins", "genkit_stripes", "torch", "importlib.metadata"} & set(sys.modules))}
import torch
from genkit.attention import registry
from genkit.cli.main import main
from genkit.errors import GenkitError

def call(*arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(arguments))
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

def refused(action):
    try:
        action()
    except GenkitError as error:
        return str(error)

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    done["names"] = [name for name in ("stripes", "crooked", "twice", "radial") if name in registry.names()]
    done["lazy"] = "genkit_stripes.method" not in sys.modules
    done["methods"] = [method.name for method in genkit.methods()]
    done["families"] = [family.name for family in genkit.families()]
    genkit.models.shipped()
    done["warned"] = sorted({str(warning.message) for warning in told})
from genkit_stripes.model import StripesTransformer2DModel
torch.manual_seed(0)
model = StripesTransformer2DModel().eval()
for parameter in model.parameters():
    parameter.data *= 4
args = (torch.randn(1, 4, 12, 10), torch.randn(1, 7, 8), torch.tensor([500]))
outs = [model(*args)[0]]
for method in (genkit.Neighborhood(size="all"), registry.build("stripes")):
    with genkit.patch(model, method) as handle:
        outs.append(model(*args)[0])
        done["ran"] = handle.report().ran
outs.append(model(*args)[0])
done["same"] = [bool(torch.allclose(outs[0], out, atol=1e-6)) for out in outs[1:]]
sys.modules["genkit_stripes.model"].attend = torch.nn.functional.scaled_dot_product_attention
sys.modules["genkit_stripes.model"].functional = type("F", (), {"scaled_dot_product_attention": staticmethod(
    torch.nn.functional.scaled_dot_product_attention)})
with genkit.patch(model, registry.build("stripes")):
    done["early"] = refused(lambda: model(*args))
done["class"] = genkit.Stripes.__name__
done["asked"] = refused(lambda: registry.method_class("crooked"))
done["unregistered"] = refused(lambda: registry.method_class("silent"))
done["taken"] = refused(lambda: registry.register("radial")(genkit.Stripes))
from genkit.models import shipped
done["shipped"] = {name: str(path) for name, path in shipped().items()}
done["imported"] = [name for name in ("genkit_weights", "genkit_stripes_models") if name in sys.modules]
done["models"] = call("models", "tiny-stripes", "--json")
done["listed"] = call("families", "stripes", "--json")
done["table"] = call("methods")
print(json.dumps(done))
"""

BROKEN = {
    "genkit-broken": {
        "genkit.methods": {"crooked": "genkit_broken.missing", "silent": "genkit_broken.silent", "radial": "json"},
        "genkit.families": {
            "bad": "genkit_broken.bad", "wan": "genkit_broken.wan", "nothing": "json", "gone": "genkit_broken.gone:X",
        },
    },
    "genkit-weights": {"genkit.models": {"weights": "genkit_weights", "lost": "genkit_lost", "file": "genkit_file"}},
    "genkit-one": {"genkit.methods": {"twice": "one"}},
    "genkit-two": {"genkit.methods": {"twice": "two"}},
}  # fmt: skip
FILES = {
    "genkit_broken/__init__.py": "",
    "genkit_broken/silent.py": "",
    "genkit_broken/bad.py": "raise RuntimeError('no licence\\x1b[31m')",
    "genkit_broken/gone.py": "",
    "genkit_file.py": "",
    "genkit_weights/__init__.py": "raise RuntimeError('imported')",
    "genkit_weights/tiny-stripes/model_index.json": '{"_class_name": "DDPMPipeline"}',
    "genkit_weights/toy-video/model_index.json": "{}",
    "genkit_weights/half.part/model_index.json": "{}",
    "genkit_broken/wan.py": "import dataclasses\nfrom genkit.families.wan import FAMILY as wan\n"
    "FAMILY = dataclasses.replace(wan, name='My Wan')",
}


def _install(place: Path, project: dict, name: str) -> None:
    """What pip leaves of a package beside its modules."""
    home = place / f"{name.replace('-', '_')}-1.0.dist-info"
    home.mkdir()
    (home / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in names.items()) for group, names in
             project.items()]  # fmt: skip
    (home / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The example installed beside broken packages, and what genkit then does."""
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## A package of one's own\n")[2].partition("\n## ")[0]
    place = tmp_path_factory.mktemp("adding")
    for name, text in {**dict(NAMED_BLOCK.findall(section)), **FILES}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    _install(place, project["entry-points"], project["name"])
    for name, groups in BROKEN.items():
        _install(place, groups, name)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{place}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=place, timeout=600, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_nothing_is_read_or_imported_before_it_is_asked_for(done):
    assert done["light"] == [] and done["lazy"]
    assert done["names"] == ["stripes", "crooked", "radial"]


def test_its_method_and_its_model_work_like_genkits_own(done):
    assert "stripes" in done["methods"] and "Stripes" in done["families"] and done["class"] == "Stripes"
    assert done["same"] == [True, False, True] and done["ran"] == 2
    entry = json.loads(done["listed"]["out"])["families"][0]
    assert entry["classes"] == ["StripesTransformer2DModel"] and {"stripes", "neighborhood"} <= set(entry["methods"])
    assert done["table"]["code"] == 0 and "its own row" in done["table"]["out"]


def test_a_model_that_holds_the_attention_function_since_its_import_is_told_so(done):
    """No pass-through reaches such a call: without the error the method would never run, and nobody would know."""
    assert "layer own.0: genkit_stripes.model holds torch's attention function" in done["early"]
    assert "'attend'" in done["early"] and "by that whole name" in done["early"]


def test_broken_packages_are_named_and_everything_else_works(done):
    assert not {"crooked", "silent"} & set(done["methods"]) and "radial" in done["methods"]
    assert "Wan" in done["families"] and "My Wan" not in done["families"]
    told = "\n".join(done["warned"])
    for piece in (
        "package genkit-broken 1.0 (genkit.methods: crooked = genkit_broken.missing) cannot be loaded: ModuleNotFound",
        "(genkit.methods: radial = json) is left out: the name 'radial' belongs to genkit.attention.radial",
        "(genkit.methods: silent = genkit_broken.silent) registers no method called 'silent'",
        "package genkit-one 1.0 (genkit.methods: twice = one) and package genkit-two 1.0 (genkit.methods: twice = two)",
        "(genkit.families: bad = genkit_broken.bad) cannot be loaded: RuntimeError: no licence\\x1b[31m",
        "(genkit.families: gone = genkit_broken.gone:X) cannot be loaded: AttributeError",
        "WanTransformer3DModel, WanVACETransformer3DModel",
        "of the family 'My Wan' already belongs to 'Wan' of genkit",
        "(genkit.families: nothing = json) is left out: family: got <module 'json'",
    ):
        assert piece in told, piece


def test_its_models_are_found_without_an_import_and_take_no_name_of_genkits(done):
    found = done["shipped"]
    assert found["tiny-stripes"].endswith(os.path.join("genkit_weights", "tiny-stripes")) and "half.part" not in found
    assert Path(found["toy-video"]).parent.parent.name == "genkit" and not done["imported"]
    assert json.loads(done["models"]["out"])["models"][0]["name"] == "tiny-stripes"
    told = "\n".join(done["warned"])
    assert "(genkit.models: lost = genkit_lost) names no package with a folder" in told
    assert "(genkit.models: file = genkit_file) names no package with a folder" in told


def test_who_asks_for_a_broken_or_taken_name_is_told_whose_it_is(done):
    assert "genkit-broken 1.0" in done["asked"] and "mend or uninstall" in done["asked"]
    assert "registers no method called 'silent'" in done["unregistered"]
    assert "the name 'radial' already belongs to genkit.attention.radial" in done["taken"]
