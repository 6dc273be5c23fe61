"""Weights of words in edits: they act on the target in every method, also on words whose maps follow the source."""

import pytest
import torch
from tiny_edits import PICTURE, SOURCE, STEPS, TARGET, seeded

import genkit
from genkit.control import text_parts
from genkit.control.words import parse_weights, word_rules

DIFFUSION = {
    "infedit": (genkit.InfEditPipeline, {"keep": 0.0}),
    "infedit, kept maps": (genkit.InfEditPipeline, {"keep": 1.0}),
    "p2p, kept maps": (genkit.PromptToPromptPipeline, {"keep": 0.5, "keep_maps": 1.0}),
    "vimaedit": (genkit.ViMAEditPipeline, {}),
    "img2img": (genkit.ImageToImagePipeline, {}),
}
FLOWS = {"flowedit": (genkit.FlowEditPipeline, {}), "p2p": (genkit.PromptToPromptPipeline, {"keep_maps": 1.0})}


def rules(pipe, weighted, form="renormalised"):
    return word_rules(text_parts(pipe), parse_weights(weighted), form=form, into="target")


@pytest.mark.parametrize(("kind", "name"), [*(("sd", name) for name in DIFFUSION), *(("flux", name) for name in FLOWS)])
def test_a_weight_of_a_shared_word_changes_the_edit_and_1_does_not(kind, name, pipe_of):
    pipe = pipe_of(kind)
    editor, options = (DIFFUSION | FLOWS if kind == "sd" else FLOWS)[name]
    prompts = (TARGET,) if editor is genkit.ImageToImagePipeline else (TARGET, SOURCE)

    def edited(weighted):
        return editor.from_pipe(pipe)(
            PICTURE, *prompts, generator=seeded(), rules=rules(pipe, weighted), **STEPS, **options
        ).latents

    plain = edited(TARGET)
    assert torch.equal(plain, edited("a green (circle:1) on blue"))
    heavy, gone = edited("a green (circle:4) on blue"), edited("a green (circle:0) on blue")
    assert not torch.equal(plain, heavy) and not torch.equal(plain, gone) and not torch.equal(heavy, gone)
    assert not genkit.patches(pipe)


def test_renormalised_weights_after_written_maps_are_the_multiplied_ones_made_to_sum_to_1():
    from genkit.control.alignment import align
    from genkit.control.columns import Columns
    from genkit.control.rows import Rows
    from genkit.control.rules import Refine, Reweight

    torch.manual_seed(0)
    weights = torch.softmax(torch.randn(2, 1, 6, 4, dtype=torch.float64), -1)
    values = torch.randn(2, 4, 1, 3, dtype=torch.float64)
    seen = _seen(Rows.of("source", "target", guided=False), values)
    out = torch.einsum("bhnm,bmhd->bnhd", weights, values)
    columns = Columns((0, 1, 2, 3), (0, 1), weights)
    refine = Refine(of="source", into="target", alignment=align([0, 1, 2, 3], [0, 1, 2, 3]))
    columns.write(refine, seen)
    columns.write(Reweight(tokens=(1,), weight=3.0, into="target"), seen)
    right = weights[0] * torch.tensor([1.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    right = torch.einsum("hnm,mhd->nhd", right / right.sum(-1, keepdim=True), values[1])
    torch.testing.assert_close(columns.correct(out, seen)[1], right)


def _seen(rows, values):
    from types import SimpleNamespace

    from genkit.control.regions import Seen
    from genkit.layout import TokenLayout

    queries, keys = TokenLayout.of_grid(1, 2, 3), TokenLayout.sequence(4)
    site = SimpleNamespace(role="cross", layout=queries, key_layout=keys, name="attn2")
    return Seen(site, values, values, values, rows, 0, 1)
