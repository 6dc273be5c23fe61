"""Vision guidance: what image prompt adapters are told of source and target."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from genkit.control.rows import Rows
from genkit.editing.shared.image_prompt import adapters, embedding, image_prompts
from genkit.editing.vimaedit.embedding import edited_embedding
from genkit.editing.vimaedit.rules import SOURCE
from genkit.errors import UnsupportedError, UsageError, counted, explain

#: Which of the unguided rows is told the source's picture.
UNCONDITIONAL = ("source", "zero")


def vision(
    pipe: Any, picture: Any, prompts: tuple[str, str], rows: Rows, scale: float, unconditional: str, tower: Any
) -> AbstractContextManager[None]:
    """A context in which every denoiser call reads the source's image embedding, or the target's estimated one.

    Args:
        pipe: with one image prompt adapter. picture: PIL, the source. prompts: of source and target.
        rows: of the denoiser calls. scale: of the adapter.
        unconditional: "source" = as published: the target's unconditional row reads the source's embedding and the
            source's row none; "zero" = the source's row reads its own, unconditional rows none.
        tower: (text model with projection, tokenizer) of the CLIP model whose image encoder the adapter reads; None =
            the pipeline's own second text encoder, where it is that model's.

    Raises:
        UnsupportedError: no adapter, several, one that reads tokens, or no text tower.
    """
    if unconditional not in UNCONDITIONAL:
        raise UsageError(explain("image_uncond", unconditional, UNCONDITIONAL))
    count = adapters(pipe)
    if count != 1:
        raise UnsupportedError(
            f"image guidance needs one image prompt adapter, {type(pipe).__name__} has {count or 'none'} loaded; call "
            "pipe.load_ip_adapter(...) once, or leave image guidance out"
        )
    image = embedding(pipe, picture)
    if image.ndim != 3:
        raise UnsupportedError(
            "image guidance moves one embedding by texts, and this adapter reads the tokens of the image encoder; load "
            "the plain form of the adapter"
        )
    source, target = _texts(pipe, prompts, tower, image.shape[-1])
    edited = edited_embedding(image[:, 0], source.to(image), target.to(image))[:, None]
    nothing = torch.zeros_like(image)
    published = unconditional == "source"
    told = []
    for row in rows.entries:
        if row.role == SOURCE:
            told.append(image if row.conditional and not published else nothing)
        else:
            told.append(edited if row.conditional else image if published else nothing)
    return image_prompts(pipe, [torch.cat(told)], [{"": scale}])


def _texts(pipe: Any, prompts: tuple[str, str], tower: Any, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Projected embeddings (1, C) of two texts."""
    if tower is None:
        tower = getattr(pipe, "text_encoder_2", None), getattr(pipe, "tokenizer_2", None)
    model, tokenizer = tower
    if model is None or getattr(model.config, "projection_dim", None) != width or not hasattr(model, "text_projection"):
        raise UnsupportedError(
            "image guidance needs the text model of the CLIP whose pictures the adapter reads "
            f"({counted(width, 'number')}); give "
            "it as clip_text=(CLIPTextModelWithProjection, tokenizer)"
        )
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            found.append(model(ids.to(next(model.parameters()).device)).text_embeds)
    return found[0], found[1]
