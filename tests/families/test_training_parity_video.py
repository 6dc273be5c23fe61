"""As ``test_training_parity``, for families of videos and of videos that go on from a picture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny_pipelines
import torch
from parity import CAPTIONS, assert_same, level_of, rebuilt, spied
from PIL import Image
from tiny_av import build_tiny_av, inputs

from genkit.errors import UnsupportedError, UsageError
from genkit.families.training.base import AUDIO, VIDEO, Call, Media
from genkit.families.training.lookup import training_of

PROMPTS = list(CAPTIONS)
DTYPES = (torch.float32, torch.bfloat16)


def _latents(*shape: int) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(5))


def _pixels(seed: int, frames: int = 1, height: int = 32, width: int = 48) -> torch.Tensor:
    """Whole eighths of bits, so that a picture holds them exactly."""
    drawn = torch.randint(0, 256, (3, frames, height, width), generator=torch.Generator().manual_seed(seed))
    return drawn / 255.0 * 2 - 1


def _picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(((pixels[:, 0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def _twice(media: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([value] * 2) for name, value in media.items() if not name.startswith(VIDEO)}


def _near(found: dict, seen: dict, name: str, exact: int, axis: int, dtype: torch.dtype) -> None:
    """Equal in the first ``exact`` entries along an axis, and up to rounding in the condition after them."""
    known, expected = found.pop(name), seen.pop(name)
    assert known.dtype == expected.dtype == dtype and known.shape == expected.shape
    assert torch.equal(known.narrow(axis, 0, exact), expected.narrow(axis, 0, exact))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(known, expected, atol=tolerance, rtol=tolerance)


def test_wan_5b_tells_every_token_its_timestep():
    pipeline = tiny_pipelines.wan(expand_timesteps=True)
    noisy = _latents(4, 2, 4, 6)
    seen = spied(
        pipeline, "transformer", 1, noisy, prompt=PROMPTS, height=32, width=48, num_frames=5, guidance_scale=1.0,
        max_sequence_length=16,
    )  # fmt: skip
    found, _ = rebuilt(pipeline, "transformer", training_of(pipeline), {VIDEO: noisy}, level_of(pipeline, 1), 16)
    assert found["timestep"].shape == (2, 12)
    assert_same(found, seen)


@pytest.fixture
def ftfy(monkeypatch):
    from diffusers.pipelines.wan import pipeline_wan_i2v

    monkeypatch.setattr(pipeline_wan_i2v, "ftfy", SimpleNamespace(fix_text=str), raising=False)


@pytest.mark.parametrize("kind", ["2.1", "first and last", "A14B", "A14B with last"])
def test_wan_from_pictures(kind, ftfy):
    pipeline = tiny_pipelines.wan_image(kind.removesuffix(" with last"))
    component = "transformer_2" if "A14B" in kind else "transformer"
    clip, first, last = _pixels(1, 9), _pixels(2), _pixels(3)
    told = {"image": _picture(first)} | ({"last_image": _picture(last)} if "last" in kind else {})
    noisy = _latents(4, 3, 4, 6)
    seen = spied(
        pipeline, component, 0 if "A14B" in kind else 1, noisy, prompt=PROMPTS, height=32, width=48, num_frames=9,
        guidance_scale=1.0, max_sequence_length=512, **told,
    )  # fmt: skip
    training = training_of(pipeline)
    given = {"first_frame": first} | ({"last_frame": last} if "last" in kind else {})
    media = training.encode(pipeline, Media(clip, fps=16.0, given=given), None)
    found, call = rebuilt(
        pipeline, component, training, {VIDEO: noisy}, level_of(pipeline, 1), 512, _twice(media)
    )  # fmt: skip
    assert found["hidden_states"][0, 4:8].sum((0, 2, 3)).tolist() == [96.0, 0.0, 24.0 if "last" in kind else 0.0]
    _near(found, seen, "hidden_states", 8, 1, torch.float32)
    assert_same(found, seen)
    assert ("encoder_hidden_states_image" in found) == (component == "transformer")
    assert training.takes == (("first_frame",) if kind == "2.1" else ("first_frame", "last_frame"))
    assert training.answers((noisy,), call)[VIDEO] is noisy and training.weights is None


def test_wan_5b_from_a_picture(ftfy):
    pipeline = tiny_pipelines.wan_image("5B")
    first, noisy = _pixels(2), _latents(4, 3, 4, 6)
    seen = spied(
        pipeline, "transformer", 1, noisy, prompt=PROMPTS, height=32, width=48, num_frames=9, guidance_scale=1.0,
        max_sequence_length=16, image=_picture(first),
    )  # fmt: skip
    training = training_of(pipeline)
    media = training.encode(pipeline, Media(_pixels(1, 9), fps=24.0, given={"first_frame": first}), None)
    found, call = rebuilt(pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 16, _twice(media))
    torch.testing.assert_close(found["hidden_states"][:, :, 0], seen["hidden_states"][:, :, 0], atol=1e-5, rtol=1e-5)
    assert torch.equal(found.pop("hidden_states")[:, :, 1:], seen.pop("hidden_states")[:, :, 1:])
    assert_same(found, seen)
    assert (found["timestep"] == 0).sum(1).tolist() == [6, 6]
    assert training.weights(call)[VIDEO].flatten().tolist() == [0, 1, 1]


def test_wan_from_a_picture_says_that_ftfy_is_missing(ftfy, monkeypatch):
    from diffusers.pipelines.wan import pipeline_wan_i2v

    monkeypatch.delattr(pipeline_wan_i2v, "ftfy")
    pipeline = tiny_pipelines.wan_image("5B")
    with pytest.raises(UnsupportedError, match="install ftfy"):
        training_of(pipeline).text(pipeline, PROMPTS, 16)


def test_without_a_given_frame_the_clips_own_is_told():
    pipeline = tiny_pipelines.wan_image("first and last")
    training, clip = training_of(pipeline), _pixels(1, 9)
    own = training.encode(pipeline, Media(clip), None)
    given = training.encode(pipeline, Media(clip, given={"first_frame": clip[:, :1], "last_frame": clip[:, -1:]}), None)
    for name, value in own.items():
        assert torch.equal(value, given[name]), name


def test_frames_that_do_not_fit_are_refused():
    pipeline = tiny_pipelines.wan_image("5B")
    training = training_of(pipeline)
    with pytest.raises(UsageError, match=r"first_frame: got \(3, 1, 16, 16\)"):
        training.encode(pipeline, Media(_pixels(1, 9), given={"first_frame": _pixels(2, 1, 16, 16)}), None)
    with pytest.raises(UsageError, match="needs more than one frame"):
        training.encode(pipeline, Media(_pixels(1, 1)), None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hunyuan_video(dtype):
    pipeline = tiny_pipelines.hunyuan_video().to(dtype)
    template = {"template": "the image is {} now", "crop_start": 2}
    noisy = _latents(4, 2, 4, 6)
    seen = spied(
        pipeline, "transformer", 1, noisy, prompt=PROMPTS, height=32, width=48, num_frames=5, guidance_scale=6.0,
        max_sequence_length=16, prompt_template=template,
    )  # fmt: skip
    encode = pipeline.encode_prompt
    pipeline.encode_prompt = lambda *args, **more: encode(*args, **more, prompt_template=template)
    training = training_of(pipeline)
    found, _ = rebuilt(
        pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 16, guidance=6.0
    )  # fmt: skip
    assert_same(found, seen)
    assert found["guidance"].float().tolist() == pytest.approx([6000, 6000], rel=0.01)
    assert training.shift(pipeline, {VIDEO: (4, 2, 4, 6)}) == 7.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheduler", [{}, {"use_dynamic_shifting": True}])
def test_motif_video(scheduler, dtype):
    pipeline = tiny_pipelines.motif_video(**scheduler).to(dtype)
    noisy = _latents(4, 2, 4, 6)
    seen = spied(
        pipeline, "transformer", 1, noisy, prompt=PROMPTS, height=32, width=48, num_frames=5, max_sequence_length=16
    )
    training = training_of(pipeline)
    found, call = rebuilt(pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 16)
    assert_same(found, seen)
    assert found["hidden_states"].shape == (2, 9, 2, 4, 6) and not found["hidden_states"][:, 4:].any()
    assert found["encoder_attention_mask"].sum(1).tolist() == [6, 2]
    assert training.answers((noisy,), call)[VIDEO] is noisy
    # The level that training shifts 0.5 to is the one the scheduler makes of it.
    shift = training.shift(pipeline, {VIDEO: (4, 2, 4, 6)})
    assert float(pipeline.scheduler.sigmas[1]) == pytest.approx(shift / (1 + shift), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_motif_video_from_a_picture(dtype, monkeypatch):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    # The pipeline draws the picture's latents from their posterior; training takes the mode.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    pipeline = tiny_pipelines.motif_video(pictures=True).to(dtype)
    first, noisy = _pixels(2), _latents(4, 3, 4, 6)[:1]
    seen = spied(  # the pipeline takes one picture with one prompt
        pipeline, "transformer", 1, noisy, prompt=PROMPTS[:1], image=_picture(first), height=32, width=48,
        num_frames=9, max_sequence_length=16,
    )  # fmt: skip
    training = training_of(pipeline)
    media = training.encode(pipeline, Media(_pixels(1, 9), fps=24.0, given={"first_frame": first}), None)
    media = {name: value[:1] for name, value in _twice(media).items()}
    found, _ = rebuilt(
        pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 16, media, captions=PROMPTS[:1]
    )
    given = found["hidden_states"][0, 4:]
    assert given[:4, 0].any() and not given[:4, 1:].any() and given[4].sum((1, 2)).tolist() == [24.0, 0.0, 0.0]
    assert torch.equal(given[4], seen["hidden_states"][0, 8])
    assert found["image_embeds"].shape == (1, 4, 8) and found["image_embeds"].any()
    _near(found, seen, "hidden_states", 4, 1, dtype)
    _near(found, seen, "image_embeds", 0, 1, dtype)
    assert_same(found, seen)
    assert training.takes == ("first_frame",) and training.weights is None


def test_motif_video_that_cannot_be_trained():
    """A shift made for pictures, weights without a picture's layers, and weights without a picture's channels."""
    from diffusers import MotifVideoTransformer3DModel

    pipeline = tiny_pipelines.motif_video(use_dynamic_shifting=True)
    with pytest.raises(UsageError, match=r"flow_shift: .* 114080 tokens by 3.8\de\+08 .*give --flow-shift"):
        training_of(pipeline).shift(pipeline, {VIDEO: (16, 31, 92, 160)})
    config = dict(pipeline.transformer.config)
    for pictures, change, words in (
        (True, {"image_embed_dim": None}, "image_embed_dim is null"),
        (False, {"in_channels": 4}, "takes 4 channels, the latents have 9"),
    ):
        pipeline = tiny_pipelines.motif_video(pictures)
        pipeline.transformer = MotifVideoTransformer3DModel.from_config({**config, **change})
        with pytest.raises(UnsupportedError, match=words):
            training_of(pipeline)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["cogvideox", "cogvideox_15"])
def test_cogvideox(variant, dtype):
    pipeline = tiny_pipelines.cogvideox(variant).to(dtype)
    frames = 3 if variant == "cogvideox" else 4
    noisy = _latents(4, frames, 4, 6).to(dtype).float()
    seen = spied(
        pipeline, "transformer", 1, noisy.transpose(1, 2), prompt=PROMPTS, height=32, width=48, num_frames=9,
        guidance_scale=1.0, max_sequence_length=5,
    )  # fmt: skip
    training = training_of(pipeline)
    found, call = rebuilt(pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 5)
    assert found["timestep"].dtype == torch.int64 and found["hidden_states"].shape == (2, frames, 4, 4, 6)
    assert_same(found, seen)
    assert torch.equal(training.answers((noisy.transpose(1, 2),), call)[VIDEO], noisy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cogvideox_from_a_picture(dtype, monkeypatch):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    # The pipeline draws the picture's latents from their posterior; training takes the mode.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    pipeline = tiny_pipelines.cogvideox_image().to(dtype)
    first, noisy = _pixels(2), _latents(4, 4, 4, 6).to(dtype).float()
    seen = spied(
        pipeline, "transformer", 1, noisy.transpose(1, 2), image=[_picture(first)] * 2, prompt=PROMPTS,
        height=32, width=48,
        num_frames=9, guidance_scale=1.0, max_sequence_length=5,
    )  # fmt: skip
    training = training_of(pipeline)
    media = training.encode(pipeline, Media(_pixels(1, 9), fps=16.0, given={"first_frame": first}), None)
    assert media[VIDEO].shape[1] == 4 and torch.equal(media[VIDEO][:, 0], media[VIDEO][:, 1])
    found, _ = rebuilt(pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 5, _twice(media))
    assert not found["hidden_states"][:, 1:, 4:].any() and found["hidden_states"][:, 0, 4:].any()
    _near(found, seen, "hidden_states", 4, 2, dtype)
    assert_same(found, seen)
    assert found["ofs"].tolist() == [2.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ltx(dtype):
    pipeline = tiny_pipelines.ltx().to(dtype)
    noisy = _latents(4, 2, 2, 3)
    packed = pipeline._pack_latents(noisy)
    seen = spied(
        pipeline, "transformer", 1, packed, prompt=PROMPTS, height=64, width=96, num_frames=9, frame_rate=24,
        guidance_scale=1.0, max_sequence_length=16,
    )  # fmt: skip
    training = training_of(pipeline)
    found, call = rebuilt(pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 16, fps=24.0)
    assert_same(found, seen)
    assert torch.equal(training.answers((packed,), call)[VIDEO], noisy)


def test_ltx_from_a_picture():
    pipeline = tiny_pipelines.ltx(pictures=True)
    first, noisy = _pixels(2, 1, 64, 96), _latents(4, 2, 2, 3)
    training = training_of(pipeline)
    media = training.encode(pipeline, Media(_pixels(1, 9, 64, 96), fps=24.0, given={"first_frame": first}), None)
    told = noisy.clone()
    told[:, :, 0] = media["first"][:, 0]
    seen = spied(
        pipeline, "transformer", 1, pipeline._pack_latents(told), prompt=PROMPTS, image=_picture(first), height=64,
        width=96, num_frames=9, frame_rate=24, guidance_scale=1.0, max_sequence_length=16,
    )  # fmt: skip
    found, call = rebuilt(
        pipeline, "transformer", training, {VIDEO: noisy}, level_of(pipeline, 1), 16, _twice(media), fps=24.0
    )
    assert_same(found, seen)
    assert (found["timestep"] == 0).sum(1).tolist() == [6, 6]
    assert training.weights(call)[VIDEO].flatten().tolist() == [0, 1]
    own = pipeline.vae.encode(first[None]).latent_dist.mode()
    own = pipeline._normalize_latents(own, pipeline.vae.latents_mean, pipeline.vae.latents_std)
    torch.testing.assert_close(media["first"], own[0].detach())


def test_ltx2_from_a_picture():
    from diffusers import LTX2ImageToVideoPipeline

    source = build_tiny_av()
    pipeline = LTX2ImageToVideoPipeline(**source.components)
    noisy, sound = _latents(4, 3, 1, 1), _latents(2, 5, 2)
    training = training_of(pipeline)
    call = inputs(
        num_frames=17, guidance_scale=1.0, audio_guidance_scale=1.0, latents=noisy[:1],
        audio_latents=sound[:1], sigmas=[0.8, 0.4], image=_picture(_pixels(2, 1, 32, 32)),
        image_crf=0,
    )  # fmt: skip
    call.pop("num_inference_steps"), call.pop("output_type")
    seen = spied(pipeline, "transformer", 0, **call)
    text = pipeline.connectors(call["prompt_embeds"], call["prompt_attention_mask"], padding_side="left")
    level = torch.full((1,), level_of(pipeline, 0))
    told = Call(
        pipeline, pipeline.transformer, {VIDEO: noisy[:1], AUDIO: sound[:1]}, level, 1000 * level,
        {"first": noisy[:1, :, :1]}, dict(zip(("video", "audio", "mask"), text, strict=True)), fps=25.0,
    )  # fmt: skip
    found = training.arguments(told)
    found.pop("return_dict")
    assert_same(found, seen)
    assert (found["timestep"] == 0).sum() == 1 and found["audio_timestep"].tolist() == [800.0]
    assert training.weights(told)[VIDEO].flatten().tolist() == [0, 1, 1]
