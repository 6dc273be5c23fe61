"""How a pipeline's model can be streamed: a cache of keys and values, clean frames before a chunk, its own way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.errors import UnsupportedError, UsageError, counted, explain
from genkit.families.codec import Codec
from genkit.families.facts import History, Streaming
from genkit.families.lookup import able, facts_of
from genkit.models import Sidecar, read_sidecar
from genkit.streaming.window import Window

CACHE, FRAMES, HISTORY = "cache", "frames", "history"
#: Ways to choose between; a pipeline that goes on by itself has "history" and no other.
CONTEXTS = (CACHE, FRAMES)
LATENTS, PIXELS = "latents", "pixels"
CARRIED = (LATENTS, PIXELS)


@dataclass(frozen=True)
class StreamPlan:
    """What a stream does, with nothing left open.

    Args:
        context: "cache": earlier frames are keys and values that a clean pass wrote after each chunk, for causal and
            diffusion-forcing models. "frames": the latest clean frames stand before the chunk in the sequence at noise
            level 0, for models that are trained to be given frames. "history": the pipeline's own way to go on.
        window: which frames a chunk sees. With "frames" it has no sink.
        carried: with "frames", what is carried over: "latents" as they are, or "pixels" of the latest frames, encoded
            anew as the beginning of a clip.
        record, codec: of the family; None with "history".
    """

    context: str
    window: Window
    carried: str
    record: Streaming | None
    codec: Codec | None

    def new(self, made: int) -> int:
        """Latent frames of the chunk after ``made`` ones: where clean frames stand before the later chunks, the first
        one fills their place."""
        return self.window.length if self.context == FRAMES and made == 0 else self.window.chunk

    def step(self, every: int) -> int:
        """Frames of a chunk after the first one; with "history" every chunk is decoded by itself.

        Args:
            every: frames behind a latent one.
        """
        return 1 + every * (self.window.chunk - 1) if self.context == HISTORY else every * self.window.chunk

    def begin(self, frame: int, every: int) -> int:
        """First frame of the first chunk that begins at a frame or later.

        Args:
            frame: in the stream. every: frames behind a latent one.
        """
        first, step = 1 + every * (self.new(0) - 1), self.step(every)
        return frame if frame == 0 else first + max(0, -(-(frame - first) // step)) * step


def plan_stream(
    class_name: str,
    config: Any,
    sidecar: Sidecar,
    *,
    context: str | None = None,
    chunk: int | None = None,
    sink: int | None = None,
    recent: int | None = None,
    trained: int | None = None,
    carried: str | None = None,
) -> StreamPlan:
    """Fill in what is left open, from the family's record and the model's configurations.

    Args:
        class_name: of the pipeline.
        config: reader of configurations: part -> mapping; "model_index" is the pipeline's own.
        sidecar: the model's ``genkit.json``.
        context, carried: see :class:`StreamPlan`. chunk, sink, recent, trained: see :class:`Window`.

    Raises:
        UnsupportedError: a pipeline that is not streamed. UsageError: settings that do not go together, or a model that
            does not tell how it is trained.
    """
    facts = facts_of(class_name)
    record = None if facts is None else facts.streaming
    if facts is None or record is None or not facts.can("stream", class_name):
        known = ", ".join(able("stream"))
        raise UnsupportedError(f"{class_name} cannot be streamed; pipelines that can: {known}")
    if isinstance(record, History):
        asked = {
            "context": context, "chunk": chunk, "sink": sink, "recent": recent, "trained": trained, "carried": carried
        }  # fmt: skip
        return _history(class_name, record, {name: value for name, value in asked.items() if value is not None})
    if facts.codec is None:
        raise UnsupportedError(f"{class_name}: its family's record does not tell how latents are normalised")
    if config("transformer_2"):
        raise UnsupportedError(f"{class_name} with two transformers cannot be streamed: each knows some levels only")
    block = int(config("transformer").get("num_frame_per_block") or 1)
    one = record.one_picture(config)
    context = _context(class_name, record, sidecar, block, one, context)
    every = int(config("vae").get("scale_factor_temporal") or 4)
    patch = int(tuple(config("transformer").get("patch_size") or (1,))[0])
    if trained is None:
        trained = (int(sidecar.defaults.get("num_frames") or record.frames) - 1) // every + 1
    if context == CACHE:
        window = _cached(block, chunk, sink, recent, trained)
        if carried is not None:
            raise UsageError(f"carried={carried!r} belongs to context='frames'; a cache carries keys and values")
        carried = LATENTS
    else:
        if block > 1:
            raise UsageError(
                f"context='frames': this model's blocks of {counted(block, 'frame')} see only earlier ones; "
                "take context='cache'"
            )
        if sink:
            raise UsageError("sink belongs to context='cache'; clean frames before a chunk have none, leave it out")
        given = one or sidecar.given_frames  # trained on beginnings of clips, whose first latent frame is a picture's
        recent = (1 if given else min(record.carry, trained - 1)) if recent is None else recent
        window = Window(trained - recent if chunk is None else chunk, 0, recent, trained)
        carried = (PIXELS if given else LATENTS) if carried is None else carried
        if carried not in CARRIED:
            raise UsageError(explain("carried", carried, CARRIED))
        if one and recent > 1:
            raise UsageError(f"recent={recent}: this model is trained to be given its first frame alone; take recent=1")
    if patch > 1:
        raise UnsupportedError(
            f"{class_name}: its tokens span {counted(patch, 'latent frame')}; streams make them one by one"
        )
    return StreamPlan(context, window, carried, record, facts.codec)


def _history(class_name: str, record: History, given: dict[str, Any]) -> StreamPlan:
    """The plan of a pipeline that goes on by itself."""
    if given.pop("context", HISTORY) != HISTORY or given:
        raise UsageError(
            f"{class_name} goes on in its own way, {counted(record.chunk, 'latent frame')} at once after the latest "
            f"{record.recent}; leave the settings of the stream out"
        )
    window = Window(record.chunk, 1, record.recent, 1 + record.recent + record.chunk)
    return StreamPlan(HISTORY, window, LATENTS, None, None)


def _context(class_name: str, record: Streaming, sidecar: Sidecar, block: int, one: bool, context: str | None) -> str:
    """How earlier frames are seen: as asked for, else as the model tells."""
    if context is not None:
        if context not in CONTEXTS:
            raise UsageError(explain("context of a stream", context, CONTEXTS))
        return context
    if block > 1:
        return CACHE
    if re.fullmatch(record.forcing, class_name) or sidecar.given_frames or one:
        return FRAMES
    raise UsageError(
        f"{class_name}: its weights do not tell whether they are causal; say context='cache' for causal ones (CausVid, "
        "Self-Forcing), or context='frames' for ones that are trained to be given clean frames"
    )


def _cached(block: int, chunk: int | None, sink: int | None, recent: int | None, trained: int) -> Window:
    """A window over a cache; by default as Hybrid Forcing has it, smaller where the model knows fewer positions."""
    chunk = (block if block > 1 else min(3, max(1, trained // 3))) if chunk is None else chunk
    if block > 1 and chunk != block:
        raise UsageError(
            explain("chunk", chunk, f"{counted(block, 'latent frame')}, the blocks that the model is trained on")
        )
    left = max(0, trained - chunk)
    sink = min(chunk, left // 2) if sink is None else sink
    recent = max(0, min(chunk, left - sink)) if recent is None else recent
    return Window(chunk, sink, recent, trained)


def sidecar_of(pipeline: Any) -> Sidecar:
    """The ``genkit.json`` of the folder that a pipeline was loaded from; an empty one without."""
    name = getattr(pipeline, "name_or_path", None) or getattr(pipeline.config, "_name_or_path", None)
    folder = Path(str(name)) if name else None
    return read_sidecar(folder if folder is not None and folder.is_dir() else None)


def configs_of(pipeline: Any) -> Any:
    """Reader of the configurations of a loaded pipeline's parts."""

    def config(part: str) -> Any:
        if part == "model_index":
            return pipeline.config
        found = getattr(pipeline, part, None)
        return {} if found is None else found.config

    return config
