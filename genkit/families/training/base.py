"""What a family tells a trainer: how media and captions become tensors, how the denoiser is called, what it answers.

Latents are those of the autoencoder, normalised as the denoiser is trained to make them, (C, h, w) of a picture,
(C, T, h, w) of a clip and (C, L, ...) of sound, time second. Noise, targets, masks and losses are made in this layout;
packing into tokens, other orders of axes and further arguments are the family's business alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]

#: Names of latents that are noised and answered.
IMAGE, VIDEO, AUDIO = "image", "video", "audio"
#: Ending of the name under which a stream's standard deviation stands beside its latents.
SPREAD = "_spread"


@dataclass(frozen=True)
class Media:
    """One sample as read from a user's files.

    Args:
        pixels: float32 (3, F, H, W) in -1..1; F is 1 for a picture.
        fps: frames per second of the pixels; None of a picture.
        audio: float32 (channels, samples) in -1..1 as long as the clip; None without sound.
        sample_rate: of ``audio``, in Hz.
        given: pictures or clips that are told to the model, by role: "first_frame", "last_frame", "control" (an image
            to edit or to follow), float32 (3, F, H, W) in -1..1. A first or last frame that is not given is the clip's
            own.
        original: (height, width) of the file before it was scaled.
        crop: (top, left) of the cut in the scaled file.
    """

    pixels: torch.Tensor
    fps: float | None = None
    audio: torch.Tensor | None = None
    sample_rate: int | None = None
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)
    original: tuple[int, int] | None = None
    crop: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Call:
    """One training step's call of a denoiser, before it has the family's form.

    Args:
        pipeline: the stock pipeline, for its scheduler, configurations and helper functions.
        model: the denoiser that is called.
        noisy: stream -> (B, ...) noisy latents, float32.
        level: (B,) noise levels in 0..1.
        timestep: (B,) what the objective tells the network of them.
        media: what :attr:`Training.encode` made beside the latents, stacked to (B, ...).
        text: what :attr:`Training.text` made, stacked to (B, ...).
        guidance: value for models with an embedded guidance scale, one for all or (B,).
        fps: frames per second of the clips.
        clean: stream -> bool (B, L), latent frames or sound tokens that are given clean and told level 0; empty where
            every stream is noisy throughout.
        apart: whether the streams are kept apart.
        cross_levels: whether the layers between two streams are told the other one's level; None = as the model's
            configuration says.
    """

    pipeline: Any
    model: Any
    noisy: Tensors
    level: torch.Tensor
    timestep: torch.Tensor
    media: Tensors
    text: Tensors
    guidance: float | torch.Tensor = 1.0
    fps: float | None = None
    clean: Tensors = field(default_factory=dict)
    apart: bool = False
    cross_levels: bool | None = None


@dataclass(frozen=True)
class Joint:
    """How a family of video and sound is trained on several tasks: its ``arguments`` heed :attr:`Call.clean` and
    :attr:`Call.apart`.

    Args:
        sound_of: (pipeline, latent frames, frames per second, sound tokens of the clip) -> how many of these tokens
            sound while so many latent frames from the beginning are shown.
    """

    sound_of: Callable[[Any, int, float | None, int], int]


@dataclass(frozen=True)
class Words:
    """How a family learns new words.

    Args:
        part: text encoder that takes their embeddings; ``tokenizer`` in place of ``text_encoder`` is its tokenizer.
        encode: (pipeline, captions, slots) -> what :attr:`Training.text` makes of the captions, stacked to (B, ...),
            through which gradients flow.
        targets: regular expression for the whole paths of the layers that make keys and values of the text.
        role: kind of attention in which the picture reads the text: "cross" or "joint".
        start: whether the text's first token says nothing of the prompt, so that what looks at it is background.
    """

    part: str
    encode: Callable[[Any, Sequence[str], int], Tensors]
    targets: str
    role: str
    start: bool


@dataclass(frozen=True)
class Training:
    """A family's record for trainers.

    Args:
        streams: names of the latents that are noised, the main one first. A later one that ``encode`` does not give (a
            clip without sound) is neither noised nor answered.
        encode: (pipeline, media, generator) -> latents of every stream and whatever else ``arguments`` needs of a
            sample, without a batch axis, float32; with a generator the targets are drawn from the autoencoder's
            posterior, without one they are its mode. Conditions are always the mode. Where the posterior is normal
            and no generator is given, its standard deviation, normalised likewise and of the latents' shape, is given
            as STREAM + :data:`SPREAD` (:meth:`genkit.families.codec.Codec.moments` makes both): a cache holds the two,
            and every epoch draws its own latents. A stream without it is trained on at its mode.
        text: (pipeline, captions, slots) -> tensors of every caption, without a batch axis, of one shape for all
            captions; made by the pipeline's own encoders with its own template.
        arguments: the keyword arguments of the denoiser's forward.
        answers: (what the forward returned, the call) -> stream -> (B, ...) in the layout of the noisy latents.
        slots: text tokens of the published models.
        shift: (pipeline, noisy latents' shapes by stream without batch axis) -> the flow shift of training; None where
            levels are not shifted.
        weights: (call) -> stream -> weights that broadcast to its latents, for parts that are given and count nothing
            (a first frame); None where all counts.
        needs: names of :attr:`Media.given` without which a sample cannot be trained on, "audio" for sound.
        takes: names of what may be given beside.
        experts: (pipeline) -> component -> (lowest, highest) noise level it sees, of models with several denoisers.
        guidance: default of :attr:`Call.guidance`.
        conditions: names of what ``encode`` makes of told pictures that training may empty or put noise on: latents
            (C, T, h, w) in the denoiser's own channels, zero where nothing is told.
        condition_dropout: share of samples whose conditions are emptied, as the family was trained.
        slots_chosen: whether ``text`` makes as many tokens as it is asked for; otherwise always ``slots``.
        variant: what ``encode`` and ``text`` depend on beside the parts of the pipeline, for the keys of caches.
        told: (height, width) in pixels -> what ``arguments`` needs beside the latents of a picture of this size that
            nobody gave, without a batch axis; None where it needs nothing.
        beside: of a denoiser that was made to inpaint, what it reads beside the noisy latents, (1, c, h, w), from
            (pipeline, latents of the picture without its unknown part (1, C, h, w), mask (1, 1, H, W) in pixels, 1
            where it is unknown); ``arguments`` finds it as "beside" among the call's media. None = it reads nothing.
        words: how new words are learned; None where that is not known.
        joint: how it is trained on several tasks; None where it makes one stream.
        untrainable: why this checkpoint cannot be trained, although its denoiser can be called; empty when it can.
    """

    streams: tuple[str, ...]
    encode: Callable[[Any, Media, torch.Generator | None], Tensors]
    text: Callable[[Any, Sequence[str], int], list[Tensors]]
    arguments: Callable[[Call], dict[str, Any]]
    answers: Callable[[Any, Call], Tensors]
    slots: int
    shift: Callable[[Any, Mapping[str, tuple[int, ...]]], float] | None = None
    weights: Callable[[Call], Tensors] | None = None
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    experts: Callable[[Any], dict[str, tuple[float, float]]] | None = None
    guidance: float = 1.0
    conditions: tuple[str, ...] = ()
    condition_dropout: float = 0.0
    slots_chosen: bool = True
    variant: str = ""
    told: Callable[[int, int], Tensors] | None = None
    beside: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    words: Words | None = None
    joint: Joint | None = None
    untrainable: str = ""


#: From a pipeline, and the kind of spectrogram its sidecar names (None: the usual one), to its record.
Builder = Callable[[Any, "str | None"], Training]
