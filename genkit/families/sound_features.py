"""From a waveform to the spectrogram that an audio autoencoder reads; the way back is the model's own vocoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from genkit.errors import UnsupportedError, UsageError, explain

if TYPE_CHECKING:
    import torch

LOG_MEL, TONES = "log-mel", "tones"


class SoundFeatures(Protocol):
    """A kind of spectrogram."""

    def __call__(self, wave: torch.Tensor, frames: int) -> torch.Tensor:
        """Spectrogram (B, channels, frames, bins) of a wave (B, channels, samples); what lies after the end is
        silent."""


@dataclass(frozen=True)
class LogMel:
    """Natural logarithm of mel amplitudes, as LTX-2's autoencoder was trained on.

    Args:
        sample_rate: of the wave.
        hop: samples from frame to frame; frame ``i`` is centred at sample ``i * hop``.
        bins: mel bins, of Slaney's scale and norm, from 0 Hz to half the sample rate.
        window: samples per frame.
        floor: smallest amplitude.
    """

    sample_rate: int
    hop: int
    bins: int
    window: int = 1024
    floor: float = 1e-5

    def __call__(self, wave: torch.Tensor, frames: int) -> torch.Tensor:
        import torch
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(
            num_frequency_bins=self.window // 2 + 1, num_mel_filters=self.bins, min_frequency=0.0,
            max_frequency=self.sample_rate / 2, sampling_rate=self.sample_rate, norm="slaney", mel_scale="slaney",
        )  # fmt: skip
        needed = max((frames - 1) * self.hop, self.window // 2 + 1)
        wave = _lengthened(wave.float(), needed)
        spectrum = torch.stft(
            wave.flatten(0, 1), self.window, self.hop, window=torch.hann_window(self.window, device=wave.device),
            center=True, pad_mode="reflect", return_complex=True,
        ).abs()  # fmt: skip
        mel = torch.einsum("nft,fm->ntm", spectrum, torch.from_numpy(filters).to(spectrum))
        return mel.clamp(min=self.floor).log().unflatten(0, wave.shape[:2])[:, :, :frames]


@dataclass(frozen=True)
class Tones:
    """Amplitudes of the multiples of one frequency, ``4 a - 1``, with one whole period of it per frame.

    Silence is -1, a full-scale tone 3. Frame ``i`` covers the samples from ``i * hop`` to ``(i + 1) * hop``; it is
    weighed by a Hann window of twice that length, whose overlapping copies sum to one.

    Args:
        sample_rate: of the wave.
        hop: samples from frame to frame; the lowest frequency is ``sample_rate / hop``.
        bins: frequencies.
    """

    sample_rate: int
    hop: int
    bins: int

    def __call__(self, wave: torch.Tensor, frames: int) -> torch.Tensor:
        import torch

        before, window = self.hop // 2, 2 * self.hop
        padded = torch.nn.functional.pad(wave.float(), (before, 0))
        pieces = _lengthened(padded, (frames - 1) * self.hop + window).unfold(-1, window, self.hop)[..., :frames, :]
        weights = torch.hann_window(window, device=wave.device)
        turns = torch.arange(window, device=wave.device)[:, None] * torch.arange(1, self.bins + 1, device=wave.device)
        angle = 2 * torch.pi * turns / self.hop
        weighed = pieces * (2 / weights.sum() * weights)
        return 4 * torch.hypot(weighed @ angle.cos(), weighed @ angle.sin()) - 1


def _lengthened(wave: torch.Tensor, samples: int) -> torch.Tensor:
    import torch

    return torch.nn.functional.pad(wave, (0, max(samples - wave.shape[-1], 0)))


KINDS: dict[str, type] = {LOG_MEL: LogMel, TONES: Tones}


def features_of(pipeline: Any, kind: str | None = None) -> SoundFeatures:
    """The spectrogram that a pipeline's audio autoencoder reads.

    Args:
        pipeline: with an ``audio_vae`` of LTX-2's class.
        kind: ``"log-mel"`` or ``"tones"``, as the model's ``genkit.json`` says under ``sound``; log-mel, which the
            released models have, when it says nothing.

    Raises:
        UsageError: an unknown kind.
        UnsupportedError: the pipeline has no such autoencoder.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(explain("sound", kind, tuple(KINDS)))
    config = getattr(getattr(pipeline, "audio_vae", None), "config", None)
    if config is None or "mel_hop_length" not in config:
        raise UnsupportedError(f"{type(pipeline).__name__} has no audio autoencoder for a given sound")
    return KINDS[kind or LOG_MEL](config.sample_rate, config.mel_hop_length, config.mel_bins)
