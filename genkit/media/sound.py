"""Sound from files of any kind that FFmpeg reads, and other sample rates for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from genkit.errors import ArtifactError, UsageError, explain

#: Samples per second that AAC, and so .mp4, can have.
AAC_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_BLOCK = 4096


def read_sound(path: str | Path) -> tuple[np.ndarray, int]:
    """Decode the first soundtrack of a file (.wav, .mp3, .flac, .mp4, ...).

    Returns:
        float32 samples (S, channels) in -1..1 with one or two channels, and samples per second. More than two channels
        are mixed to two.

    Raises:
        ArtifactError: missing or unreadable file, or one without sound.
    """
    import av

    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.audio or container.streams.audio[0].codec_context is None:
                raise ArtifactError(f"{path} has no sound in it")
            stream = container.streams.audio[0]
            rate = int(stream.codec_context.sample_rate)
            layout = "mono" if stream.codec_context.channels == 1 else "stereo"
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
            blocks = [out.to_ndarray() for frame in container.decode(audio=0) for out in resampler.resample(frame)]
            blocks += [out.to_ndarray() for out in resampler.resample(None)]
            length = round(stream.duration * stream.time_base * rate) if stream.duration else None
    except (av.error.FFmpegError, OSError, ValueError, TypeError, ArithmeticError) as error:
        raise ArtifactError(f"cannot read {path} as sound: {error}") from error
    if not blocks:
        raise ArtifactError(f"{path} has no sound in it")
    return np.ascontiguousarray(np.concatenate(blocks, axis=1).T[:length]), rate


def resample(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A sound (S, channels) at another sample rate, with as many samples as its duration asks for.

    Raises:
        UsageError: a rate that is not positive, or more than two channels.
    """
    if min(rate, wanted) <= 0 or sound.ndim != 2 or sound.shape[1] not in (1, 2):
        raise UsageError(explain("sound", f"{sound.shape} at {rate} Hz", "(S, 1 or 2 channels) at a rate above 0"))
    if rate == wanted or not len(sound):
        return sound
    import av

    layout = "mono" if sound.shape[1] == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=wanted)
    blocks = []
    for start in range(0, len(sound), _BLOCK):
        piece = np.ascontiguousarray(sound[start : start + _BLOCK].T, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, start
        blocks += [out.to_ndarray() for out in resampler.resample(frame)]
    blocks += [out.to_ndarray() for out in resampler.resample(None)]
    count = round(len(sound) * wanted / rate)
    made = np.concatenate(blocks, axis=1).T[:count]
    return np.pad(made, ((0, count - len(made)), (0, 0)))
