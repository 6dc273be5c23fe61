"""The parts of toy-av on their own: vocoder, spectrograms, text, noise levels, read-outs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from genkit import world
from genkit.errors import UsageError
from genkit.families.sound_features import LogMel, Tones, features_of
from genkit.training.data.world.features import SOUND_FEATURES, sound_features
from genkit.training.engine.curriculum import Stage
from genkit.training.toys.av.model import GivenShares, ToyAv, av_loss, draw_given, noisy_pair, pair_loss
from genkit.training.toys.av.parts import (
    BINS,
    GATE,
    HOP,
    audio_tokens,
    build_audio_vae,
    build_av_tokenizer,
    build_av_video_vae,
    build_gemma,
    build_vocoder,
    spectrum_frames,
)
from genkit.training.toys.av.pool import SoundPool
from genkit.training.toys.video.model import sizes
from genkit.world.sound import PITCHES, SAMPLE_RATE

TONES = Tones(SAMPLE_RATE, HOP, BINS)


def test_the_vocoder_plays_what_was_measured():
    clock = np.arange(16000) / SAMPLE_RATE
    wave = np.stack([0.5 * np.sin(2 * np.pi * 400 * clock), 0.3 * np.cos(2 * np.pi * 2600 * clock)]).astype(np.float32)
    spectrum = TONES(torch.from_numpy(wave)[None], 97)
    assert spectrum.shape == (1, 2, 97, BINS)
    amplitude = (spectrum[0, :, 2:-2] + 1) / 4
    assert amplitude[0, :, 3].sub(0.5).abs().max() < 1e-3 and amplitude[1, :, 25].sub(0.3).abs().max() < 1e-3
    with torch.no_grad():
        played = build_vocoder()(spectrum)[0].numpy()
    assert played.shape == (2, 97 * HOP)
    window = np.hanning(8000)
    for side, (bin_, level) in enumerate(((400, 0.5), (2600, 0.3))):
        power = np.abs(np.fft.rfft(played[side, 2000:10000] * window)) ** 2
        peak = int(power.argmax())
        assert peak * 2 == bin_
        assert power[peak - 3 : peak + 4].sum() > 0.999 * power.sum()
        assert np.abs(played[side, 2000:10000]).max() == pytest.approx(level - GATE, abs=0.01)


def test_the_vocoder_keeps_silence_under_hiss():
    hiss = 4 * GATE * torch.rand(1, 2, 50, BINS) * 0.9 - 1
    with torch.no_grad():
        assert build_vocoder()(hiss).abs().max() < 1e-4


def test_every_event_survives_analysis_and_vocoder():
    colours = list(PITCHES)
    events = [
        world.Event(0.3 + 0.25 * index, kind, colour, PITCHES[colour] * (0.5 if kind == "stop" else 1.0), pan)
        for index, (colour, kind, pan) in enumerate(
            zip(colours, ("bounce", "stop") * 4, (-0.9, 0.9, -0.5, 0.5, -0.3, 0.3, -0.7, 0.7), strict=True)
        )
    ]
    wave = torch.from_numpy(world.render_sound(events, 2.5))[None]
    with torch.no_grad():
        played = build_vocoder()(TONES(wave, 245))[0].numpy()
    score = world.compare_events(events, world.listen(played, SAMPLE_RATE))
    assert score.f1 == 1.0 and score.pitch == 1.0 and score.side == 1.0
    assert abs(score.offset) <= 0.0151


def test_token_counts_are_the_pipelines():
    vae = build_audio_vae()
    for frames, tokens in ((1, 3), (9, 28), (25, 78)):
        assert audio_tokens(frames) == tokens
        spectrum = torch.zeros(1, 2, spectrum_frames(tokens), BINS)
        with torch.no_grad():
            latents = vae.encode(spectrum).latent_dist.mode()
            assert latents.shape[2] == tokens
            assert vae.decode(latents).sample.shape == spectrum.shape


def test_log_mel_is_that_of_the_released_models():
    clock = torch.arange(16000) / 16000
    wave = (0.5 * torch.sin(2 * torch.pi * 1000 * clock))[None, None]
    mel = LogMel(16000, 160, 64)(wave, 97)
    assert mel.shape == (1, 1, 97, 64)
    # Slaney's scale is linear up to 1000 Hz, with 15 mels there and 45.2 at 8000 Hz: the 20th of 64 triangles.
    assert set(mel[0, 0, 10:-10].argmax(-1).tolist()) <= {20, 21}
    assert LogMel(16000, 160, 64)(torch.zeros(1, 2, 100), 5).unique().tolist() == pytest.approx([np.log(1e-5)])


def test_features_follow_the_models_configuration():
    pipeline = type("Pipeline", (), {"audio_vae": build_audio_vae()})()
    assert features_of(pipeline) == LogMel(SAMPLE_RATE, HOP, BINS)
    assert features_of(pipeline, "tones") == TONES
    with pytest.raises(UsageError, match="log-mel"):
        features_of(pipeline, "chroma")


def test_left_padding_changes_no_word():
    tokenizer = build_av_tokenizer()
    tokenizer.padding_side = "left"
    encoder = build_gemma(len(tokenizer))
    texts = ["a green ball bounces twice", "a big red square moves up on a black background"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert tokenizer.unk_token_id not in batch.input_ids
    with torch.no_grad():
        both = encoder(**{k: batch[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True)
        one = encoder(input_ids=tokenizer(texts[:1], return_tensors="pt").input_ids, output_hidden_states=True)
    length = one.hidden_states[0].shape[1]
    for padded, alone in zip(both.hidden_states, one.hidden_states, strict=True):
        assert (padded[0, -length:] - alone[0]).abs().max() < 1e-4
    frozen = [name for name, parameter in encoder.named_parameters() if not parameter.requires_grad]
    assert frozen and not any("language_model" in name for name in frozen)


def test_what_is_given_stays_clean_and_counts_nothing():
    video, sound = torch.randn(400, 2, 1, 2, 2), torch.randn(400, 3, 4)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    drawn = noisy_pair(video, sound, 4.0, draw_given(len(video), GivenShares(), rng), generator)
    given_sound, given_video = drawn["sound_sigma"] == 0, drawn["sigma"] == 0
    assert 0.1 < given_sound.float().mean() < 0.2 and 0.1 < given_video.float().mean() < 0.2
    assert not (given_sound & given_video).any()
    assert torch.equal(drawn["sound"][given_sound], sound[given_sound])
    assert torch.equal(drawn["video"][given_video], video[given_video])
    joint = ~given_sound & ~given_video
    assert torch.equal(drawn["sigma"][joint], drawn["sound_sigma"][joint])
    assert not torch.isclose(drawn["video"][joint], video[joint]).all()
    answers = [torch.zeros_like(part).requires_grad_() for part in (video, sound)]
    pair_loss(*answers, drawn)[0].backward()
    for answer, given in zip(answers, (given_video, given_sound), strict=True):
        assert (answer.grad[given] == 0).all() and (answer.grad[~given].flatten(1).abs().sum(1) > 0).all()


def test_sound_read_outs_tell_the_last_and_the_next_event():
    events = [world.Event(0.5, "bounce", "red", 400, -0.5), world.Event(1.0, "stop", "cyan", 1100, 0.5)]
    found = sound_features(events, 50, 25.0).reshape(50, 2, SOUND_FEATURES // 2)
    assert (found[:12, 0] == 0).all() and (found[25:, 1] == 0).all()
    assert found[13, 0, 0] > found[20, 0, 0] > 0 and found[24, 1, 0] > found[14, 1, 0] > 0
    assert found[13, 0, 1:4].tolist() == [2, 0, 0] and found[30, 0, 1:4].tolist() == [0, 0, 2]
    assert found[13, 0, 5] == -1 and found[30, 0, 5] == 1


@pytest.mark.parametrize("shares", [GivenShares(1.0, 0.0, 0.0), GivenShares(0.0, 1.0, 0.0), GivenShares(0.0, 0.0, 1.0)])
def test_every_parameter_takes_part_in_every_step(shares):
    """Distributed training waits for the gradients of all parameters, whatever half of a sample is given."""
    model = ToyAv({"num_layers": 2})
    for layer in (model.transformer.proj_out, model.transformer.audio_proj_out):
        torch.nn.init.normal_(layer.weight, std=0.1)
    pool = SoundPool(build_av_video_vae(), np.random.default_rng(0), audio_vae=build_audio_vae())
    stages = (Stage(0.0, sizes((5, 64, 64, 1.0))),)
    loss, figures = av_loss(pool, model, 0, tokens=100, stages=stages, shares=shares)(model, 0, 0.0)
    loss.backward()
    missing = [name for name, part in model.named_parameters() if part.requires_grad and part.grad is None]
    assert missing == []
    made = {"velocity", "sound"} - ({"sound"} if shares.sound else {"velocity"} if shares.video else set())
    assert made <= set(figures) and len(set(figures) & {"velocity", "sound"}) == len(made)
    still = model.transformer.audio_proj_out if shares.sound else model.transformer.proj_out
    assert bool(still.weight.grad.any()) == (not shares.sound and not shares.video)
