"""BroadWay on tiny UNets over video, Latte and a tiny AnimateDiffPipeline: which layers follow which, steps, halves."""

from __future__ import annotations

import re

import pytest
import torch
from gate_methods import Recorder
from tiny_sd import tiny_clip

import genkit
from genkit.attention.broadway import maps
from genkit.errors import UnsupportedError, UsageError

UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
    "block_out_channels": (8, 16, 16), "cross_attention_dim": 32,
}  # fmt: skip
SIZES = {"0": (2, 3), "1": (4, 5), "2": (7, 9)}  # of the decoder's blocks, each level rounds up
FRAMES = 6


def motion(width=32):
    """AnimateDiff's class with three levels: ``up_blocks.2`` has the layers of ``up_blocks.1`` once more."""
    from diffusers import UNetMotionModel

    torch.manual_seed(0)
    return UNetMotionModel(
        **UNET | {"cross_attention_dim": width}, num_attention_heads=2, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion", "CrossAttnUpBlockMotion"),
    ).eval()  # fmt: skip


def text_to_video():
    from diffusers import UNet3DConditionModel

    torch.manual_seed(0)
    return UNet3DConditionModel(
        **UNET, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock3D",) * 2 + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 2,
    ).eval()  # fmt: skip


def stable_video():
    from diffusers import UNetSpatioTemporalConditionModel

    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(
        sample_size=8, in_channels=8, out_channels=4, layers_per_block=1, block_out_channels=(32, 64, 64),
        cross_attention_dim=16, num_attention_heads=2, num_frames=FRAMES, addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",) * 2 + ("DownBlockSpatioTemporal",),
        up_block_types=("UpBlockSpatioTemporal",) + ("CrossAttnUpBlockSpatioTemporal",) * 2,
    ).eval()  # fmt: skip


MODELS = {
    "motion": (motion, r"up_blocks\.([12])\.(motion_modules\.\d+\.transformer_blocks\.0\.attn[12])"),
    "text_to_video": (text_to_video, r"up_blocks\.([12])\.(temp_attentions\.\d+\.transformer_blocks\.0\.attn[12])"),
    "stable_video": (stable_video, r"up_blocks\.([12])\.(attentions\.\d+\.temporal_transformer_blocks\.0\.attn1)"),
}


def given(name, batch=2):
    draw = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=draw)

    if name == "stable_video":
        return {
            "sample": normal(batch, FRAMES, 8, 7, 9), "timestep": torch.tensor(500),
            "encoder_hidden_states": normal(batch, 1, 16), "added_time_ids": normal(batch, 3),
        }  # fmt: skip
    texts = batch * FRAMES if name == "motion" else batch
    return {
        "sample": normal(batch, 4, FRAMES, 7, 9), "timestep": torch.tensor(500),
        "encoder_hidden_states": normal(texts, 6, 32),
    }  # fmt: skip


def forward(model, args):
    with torch.no_grad():
        return model(**args, return_dict=False)[0]


class Oracle:
    """The paper's attention in the place of PyTorch's while the decoder's temporal layers run: no part of the gate."""

    def __init__(self, model, pattern, alpha, beta, monkeypatch):
        self.there, self.guides, self.plain = [], {}, torch.nn.functional.scaled_dot_product_attention
        self.alpha, self.beta, self.calls = alpha, beta, 0
        self.hooks = []
        for name, module in model.named_modules():
            found = re.fullmatch(pattern, name)
            if found:
                self.follow(module, found.groups())
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", self)

    def follow(self, module, at):
        self.hooks.append(module.register_forward_pre_hook(lambda *_: self.there.append(at)))
        self.hooks.append(module.register_forward_hook(lambda *_: self.there.pop() and None))

    def __call__(self, q, k, v, **more):
        if not self.there:
            return self.plain(q, k, v, **more)
        self.calls += 1
        block, rest = self.there[-1]
        if block == "1":
            scores = q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5
            self.guides[rest] = scores.softmax(-1)
        guide = None if block == "1" else self.guides[rest]
        if guide is not None and guide.shape[1] != q.shape[1]:
            guide = guide.mean(1, keepdim=True).expand(-1, q.shape[1], -1, -1)
        out = maps.reference(
            *(x.double().transpose(1, 2) for x in (q, k, v)), q.shape[-1] ** -0.5, 99, self.alpha, self.beta, guide,
            (SIZES["1"], SIZES[block]),
        ).out  # fmt: skip
        return out.transpose(1, 2).to(v.dtype)

    def remove(self, monkeypatch):
        monkeypatch.undo()
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("name", MODELS)
def test_the_patched_model_computes_the_papers_attention(name, monkeypatch):
    build, pattern = MODELS[name]
    model, args = build(), given(name)
    before = forward(model, args)
    oracle = Oracle(model, pattern, 0.6, 1.5, monkeypatch)
    right = forward(model, args)
    oracle.remove(monkeypatch)
    with genkit.patch(model, genkit.Broadway()) as patch:
        out, report = forward(model, args), patch.report()
    assert report.ran == oracle.calls > 0 and not report.remarks
    assert all("has a guide" in reason for reason in report.declined)
    assert {site.name for site in report.sites if site.ran} == {
        path for path, _ in model.named_modules() if re.fullmatch(pattern, path)
    }
    torch.testing.assert_close(out, right, atol=2e-5, rtol=1e-4)
    assert (out - before).abs().max() > 1e-3 and torch.equal(forward(model, args), before)
    with genkit.patch(model, genkit.Broadway(alpha=0, beta=1)):
        torch.testing.assert_close(forward(model, args), before, atol=2e-5, rtol=1e-4)


def test_records_tell_places_and_guides():
    for name, (build, pattern) in MODELS.items():
        recorder, model = Recorder(), build()
        with genkit.patch(model, recorder, roles="temporal"):
            forward(model, given(name))
        for site, keys in recorder.seen:
            assert len(keys) % (site.places[0] * site.places[1]) == 0
            found = re.fullmatch(pattern, site.name)
            assert site.guide == (f"up_blocks.1.{found[2]}" if found else "")
            if found:
                assert site.places == SIZES[found[1]]


def test_models_of_one_resolution_have_their_frequencies_amplified():
    from diffusers import LatteTransformer3DModel

    torch.manual_seed(0)
    model = LatteTransformer3DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=12, num_attention_heads=2, caption_channels=16,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
        video_length=3,
    ).eval()  # fmt: skip
    args = {
        "hidden_states": torch.randn(2, 4, 3, 8, 10), "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": torch.randn(2, 6, 16),
    }  # fmt: skip
    before = forward(model, args)
    with genkit.patch(model, genkit.Broadway()) as patch:
        out, report = forward(model, args), patch.report()
    assert report.ran == 2 and "alpha=0.6 had no effect" in report.remarks[0]
    assert not torch.allclose(out, before, atol=1e-5) and torch.equal(forward(model, args), before)
    with pytest.raises(UnsupportedError, match="blocks=all"):
        genkit.patch(model, genkit.Broadway(blocks="decoder"))
    with pytest.raises(UnsupportedError, match="temporal"):
        genkit.patch(genkit.load("toy-video").transformer, genkit.Broadway())


def test_a_schedule_of_layers_keeps_guides_and_shares_the_model():
    model, args = motion(), given("motion")
    last = [i for i, found in enumerate(genkit.patch(model, genkit.Broadway()).sites) if "up_blocks.2" in found]
    genkit.unpatch(model)
    schedule = genkit.Schedule(layers=f"{last[0]}:")
    with pytest.raises(UsageError, match="leaves out"):
        genkit.patch(model, genkit.Broadway(), schedule=schedule)
    before = forward(model, args)
    with (
        genkit.patch(model, genkit.Agent(cell=(1, 2, 2)), roles="spatial") as other,
        genkit.patch(model, genkit.Broadway(alpha=0), schedule=schedule) as patch,
    ):
        forward(model, args)
        assert patch.report().ran == len(last) and other.report().ran
    assert torch.equal(forward(model, args), before)


def pipeline():
    from diffusers import AnimateDiffPipeline, AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel

    torch.manual_seed(0)
    text_encoder, tokenizer = tiny_clip()
    unet = UNet2DConditionModel(
        **UNET, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    adapter = MotionAdapter(
        block_out_channels=(8, 16, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = AnimateDiffPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, motion_adapter=adapter,
        scheduler=DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pipeline_tells_steps_and_halves():
    pipe = pipeline()

    def sample(**more):
        return pipe(
            "a", num_frames=FRAMES, height=16, width=16, num_inference_steps=5, output_type="latent",
            generator=torch.Generator().manual_seed(0), **more,
        ).frames  # fmt: skip

    before = sample()
    method = genkit.Broadway()
    with genkit.patch(pipe, method, schedule=genkit.Schedule(**method.recommended(5, 10))) as patch:
        out, report = sample(), patch.report()
    assert {site.steps for site in report.sites if site.ran} == {(0,)} and not report.remarks
    assert out.isfinite().all() and not torch.allclose(out, before, atol=1e-5) and torch.equal(sample(), before)
    for scale, both in ((7.5, True), (1.0, False)):
        recorder = Recorder()
        with genkit.patch(pipe, recorder, roles="temporal"):
            sample(guidance_scale=scale)
        assert {site.both for site, _ in recorder.seen} == {both}
