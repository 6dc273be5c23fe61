"""Token routing: the card's steps by hand, gradients past the span, ratio 0, seeds, checkpointing, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny
import torch

import genkit
from genkit.attention.shared_cross_attention import SharedCrossAttention
from genkit.errors import UnsupportedError, UsageError
from genkit.patching.patched_model import PatchedModel
from genkit.training.lora.route import Route, as_route
from genkit.training.lora.token_route import TokenRoute, check_route

sys.path.append(str(Path(__file__).parents[2] / "families"))
#: Model -> the span that is routed, over all its blocks.
SPANS = {
    "wan": (1, 3), "flux": (1, 3), "hunyuan_video": (0, 2), "hunyuan_video_padded": (0, 3), "sd3": (0, 3),
    "cogvideox": (0, 1), "cogvideox_15": (0, 2), "motif_video": (0, 2), "motif_video_text": (1, 3),
}  # fmt: skip
#: Where the tokens stand among a block's outputs, and whether the text comes first in joint attention.
OUTPUT = {"wan": None, "flux": 1, "sd3": 1}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def built(name, rotary=False):
    """A tiny model in double precision where it can be, and the arguments of a forward."""
    if name.startswith("motif"):
        import zoo

        with torch.random.fork_rng():
            torch.manual_seed(0)
            case = zoo.builders()[name][1]()
    else:
        case = tiny.build(name)
    args = {**case.args, "return_dict": False}
    if name == "cogvideox_15":
        turn = torch.rand(60, 8, generator=seeded()).repeat_interleave(2, -1)
        args["image_rotary_emb"] = (turn.cos(), turn.sin())
    return case.model.eval(), args


def lists(model):
    names = ("blocks", "transformer_blocks", "single_transformer_blocks")
    return [block for name in names for block in getattr(model, name, [])]


class ByHand:
    """The card's steps without hooks: every block's forward is replaced by one that is told what to leave out."""

    def __init__(self, model, name, start, stop, kept, text_first):
        self.blocks = lists(model)
        for index in range(start, stop):
            block, forward = self.blocks[index], self.blocks[index].forward
            block.forward = self.wrapped(
                forward, index == start, index == stop - 1, kept, OUTPUT.get(name, 0), text_first
            )

    def wrapped(self, forward, first, last, kept, place, text_first):
        def cut(value, n, e):
            """Any table or mask: along every axis of n or n + e tokens what is kept."""
            for axis, size in enumerate(value.shape):
                if size == n:
                    value = value[(slice(None),) * axis + (kept,)]
                elif e and size == n + e:
                    rows = [*range(e), *(e + kept).tolist()] if text_first else [*kept.tolist(), *range(n, n + e)]
                    value = value[(slice(None),) * axis + (rows,)]
            return value

        def run(*args, **given):
            args, given = list(args), dict(given)
            tokens = args[0] if args else given["hidden_states"]
            text = args[1] if len(args) > 1 else given.get("encoder_hidden_states")
            if first:
                self.full = tokens
                tokens = tokens[:, kept]
            n, e = self.full.shape[1], 0 if text is None else text.shape[1]
            if args:
                args[0] = tokens
                rest = [self.told(value, cut, n, e) for value in args[2:]]
                args[2:] = rest
            else:
                given["hidden_states"] = tokens
                for key in set(given) - {"hidden_states", "encoder_hidden_states", "temb"}:
                    given[key] = self.told(given[key], cut, n, e)
            out = forward(*args, **given)
            if not last:
                return out
            found = out if place is None else out[place]
            whole = self.full.clone()
            whole[:, kept] = found
            return whole if place is None else tuple(whole if i == place else part for i, part in enumerate(out))

        return run

    @staticmethod
    def told(value, cut, n, e):
        if isinstance(value, tuple):
            return tuple(cut(part, n, e) for part in value)
        return (
            cut(value, n, e)
            if isinstance(value, torch.Tensor) and value.ndim > 1 and n in (*value.shape, value.shape[-1] - e)
            else value
        )


@pytest.mark.parametrize("name", SPANS)
def test_values_and_gradients_of_the_steps_by_hand(name):
    """Every model that can be routed: kept tokens with their rotary rows and mask columns, the others past the span."""
    start, stop = SPANS[name]
    model, args = built(name)
    weights = [value for value in model.parameters()]
    route = TokenRoute(model, Route(start, stop, 0.4))
    route.next(seeded(5))
    out = model(**args)[0]
    kept, count = route._kept, route._tokens.shape[1]
    assert len(kept) == round(0.6 * count) and kept.tolist() == sorted(set(kept.tolist())) and kept[-1] < count
    found = torch.autograd.grad(out.square().sum(), weights, allow_unused=True)
    route.remove()
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in lists(model))
    plain = model(**args)[0]
    assert not torch.allclose(out, plain, atol=1e-4)
    ByHand(model, name.split("_")[0], start, stop, kept, name in ("flux", "cogvideox", "cogvideox_15"))
    right = model(**args)[0]
    torch.testing.assert_close(out, right, atol=1e-6, rtol=1e-5)
    for one, other in zip(found, torch.autograd.grad(right.square().sum(), weights, allow_unused=True), strict=True):
        if one is None or other is None:
            assert one is None and other is None
            continue
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", SPANS)
def test_ratio_0_and_passes_that_were_not_announced_are_the_model_bit_for_bit(name):
    start, stop = SPANS[name]
    model, args = built(name)
    weights = list(model.parameters())
    plain = model(**args)[0]
    wanted = torch.autograd.grad(plain.square().sum(), weights, allow_unused=True)
    route = TokenRoute(model, Route(start, stop, 0.0))
    route.next(seeded())
    out = model(**args)[0]
    assert torch.equal(out, plain) and route._kept is not None
    for one, other in zip(torch.autograd.grad(out.square().sum(), weights, allow_unused=True), wanted, strict=True):
        assert one is other is None or torch.equal(one, other)
    route.remove()
    route = TokenRoute(model, Route(start, stop, 0.5))
    route.next(seeded())
    assert not torch.equal(model(**args)[0], plain)
    assert torch.equal(model(**args)[0], plain), "the next pass is whole again"


def test_dropped_tokens_skip_the_span_exactly():
    """What leaves the span of a dropped token is what came; its gradient goes past the span, that of text is whole."""
    model, args = built("motif_video")
    route = TokenRoute(model, Route(0, 2, 0.5))
    came, left = [], []
    block = model.transformer_blocks[0]
    first = block.register_forward_pre_hook(lambda m, given: came.append(given[0]), prepend=True)
    last = model.single_transformer_blocks[0].register_forward_hook(lambda m, given, out: left.append(out[0]))
    route.next(seeded(2))
    model(**args)
    first.remove(), last.remove()
    kept = set(route._kept.tolist())
    dropped = [token for token in range(60) if token not in kept]
    assert len(dropped) == 30
    assert torch.equal(left[0][:, dropped], came[0][:, dropped])
    assert not torch.isclose(left[0][:, sorted(kept)], came[0][:, sorted(kept)]).all(-1).any()
    weight = torch.rand(left[0].shape, generator=seeded())
    grad = torch.autograd.grad((left[0] * weight)[:, dropped].sum(), came[0], retain_graph=True)[0]
    assert torch.equal(grad[:, dropped], weight[:, dropped]) and not grad[:, sorted(kept)].any()


def test_the_generator_decides():
    model, args = built("wan")
    route, kept = TokenRoute(model, Route(1, 3, 0.5)), []
    for seed in (1, 1, 2):
        route.next(seeded(seed))
        model(**args)
        kept.append(route._kept)
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


@pytest.mark.parametrize("name", ["wan", "flux", "motif_video", "hunyuan_video_padded"])
def test_with_checkpointing_the_gradients_are_the_same(name):
    start, stop = SPANS[name]
    grads = []
    for saves in (False, True):
        model, args = built(name)
        model.train()
        if saves:
            model.enable_gradient_checkpointing()
        route = TokenRoute(model, Route(start, stop, 0.5))
        route.next(seeded())
        model(**args)[0].square().sum().backward()
        grads.append([value.grad for value in model.parameters()])
        route.remove()
    for one, other in zip(*grads, strict=True):
        assert one is other is None or torch.allclose(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("name", ["flux", "motif_video", "hunyuan_video_padded"])
def test_shared_cross_attention_goes_with_it(name, saves):
    """Its positions and text are those of the tokens that are left: ratio 0 changes nothing, and all is whole after."""
    start, stop = SPANS[name]
    model, args = built(name)
    model.train()
    if saves:
        model.enable_gradient_checkpointing()
    with genkit.patch(model, SharedCrossAttention()) as patch:
        with torch.no_grad():
            for parameter in patch.weights.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(3)) * 0.3)
        plain = model(**args)[0]
        streams = PatchedModel.of(model).state.streams
        for ratio in (0.0, 0.5):
            check_route(model, Route(start, stop, ratio), patch)
            route = TokenRoute(model, Route(start, stop, ratio))
            route.next(seeded())
            patch.weights.zero_grad()
            out = model(**args)[0]
            assert torch.allclose(out, plain, atol=1e-6) == (ratio == 0)
            out.square().sum().backward()
            assert all(parameter.grad is not None and parameter.grad.any() for parameter in patch.weights.parameters())
            assert PatchedModel.of(model).state.streams is streams
            route.remove()
        torch.testing.assert_close(model(**args)[0], plain)


def test_attention_that_needs_the_grid_may_stand_outside_of_the_span():
    model, args = built("motif_video")  # one dual block, one single, one of the decoder
    near = genkit.Neighborhood(size=3)
    with genkit.patch(model, near, schedule=genkit.Schedule(layers="2:")) as patch:
        check_route(model, Route(0, 2, 0.5), patch)
        route = TokenRoute(model, Route(0, 2, 0.5))
        route.next(seeded())
        assert torch.isfinite(model(**args)[0]).all() and patch.report().ran
        route.remove()
    with genkit.patch(model, near) as patch:
        with pytest.raises(
            UnsupportedError, match=r"blocks 0:2, and attention neighborhood of layer transformer_blocks"
        ):
            check_route(model, Route(0, 2, 0.5), patch)


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (Route(0, 3, 0.5), r"blocks 0:3 of a model with 3; allowed: 0 <= START < END <= 2 \(the 1 after them"),
        (Route(1, 1, 0.5), "blocks 1:1"),
        (Route(-9, None, 0.5), "blocks -6:2"),
        (Route(2, None, 0.5), "blocks 2:2"),
    ],
)
def test_spans_that_are_none(route, words):
    with pytest.raises(UsageError, match=words):
        TokenRoute(built("motif_video")[0], route)


@pytest.mark.parametrize("name", ["ltx2", "unet", "qwen_image", "wan_vace"])
def test_models_whose_record_does_not_tell(name):
    with pytest.raises(UnsupportedError, match="does not tell how tokens go through its blocks"):
        check_route(tiny.build(name).model, Route(0, 1, 0.5))


@pytest.mark.parametrize(
    "text", ["", "1:2", "1:2:", "a:2:0.5", "1:2:x", "1:2:0.5:3", "1-2:0.5", "1:2:-0.5", "1:2:nan", "1:2:0.96", "1:2:5"]
)
def test_texts_that_are_no_route(text):
    with pytest.raises(UsageError, match="--route"):
        Route.parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("99999:-1:0.5", "START: got '99999', allowed: a block from -9999 to 9999"),
        ("1:-12345:0.5", "END: got '-12345', allowed: a block from -9999 to 9999"),
        ("1:" + "9" * 5000 + ":0.5", "END: got .* allowed: a block from -9999 to 9999"),
        ("1:2:" + "9" * 400, "share of skipping tokens: got inf, allowed: a number from 0 to 0.95"),
    ],
)
def test_numbers_beyond_their_range_are_told_as_such(text, told):
    with pytest.raises(UsageError, match=f"--route, {told}"):
        Route.parse(text)


@pytest.mark.parametrize(
    ("texts", "normal"),
    [
        (("1:-1:0.5", " 1:-1:0.50 ", "01:-01:.5", "1:-1:00.500"), "1:-1:0.5"),
        ((":4:0", "0:4:0.0", "-0:4:0."), "0:4:0.0"),
        (("2::0.00001", "2::.000010"), "2::0.00001"),
        (("0" * 5000 + "::0.25", "::0.25"), "0::0.25"),
    ],
)
def test_every_way_of_writing_a_route_is_one_setting(texts, normal):
    assert {as_route(text, "--route") for text in texts} == {normal}
    assert as_route(normal, "--route") == normal and len({Route.parse(text).ratio for text in texts}) == 1


def test_texts():
    assert Route.parse("2:-2:0.5") == Route(2, -2, 0.5) and Route.parse("::.25") == Route(None, None, 0.25)
    assert Route(2, -8, 0.5).span(36, 28) == (2, 28)
    with pytest.raises(UsageError, match="blocks 2:34 of a model with 36; .* END <= 28"):
        Route.parse("2:-2:0.5").span(36, 28)
    assert Route(None, None, 0.5).span(36, 28) == (0, 28) and Route(0, 1, 0.94).kept(5) == 1
