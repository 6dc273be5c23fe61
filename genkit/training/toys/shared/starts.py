"""What a run begins with, besides chance: a model's weights, and a text encoder that knows word order."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from genkit.errors import ArtifactError, UsageError
from genkit.models.registry import locate
from genkit.reading import whole
from genkit.training.engine.checkpoint import atomic_save
from genkit.training.engine.loop import process_rank, wait_for_all
from genkit.training.engine.warm_start import begin_from
from genkit.training.toys.shared.text_order import Question, teach_order

#: The relative biases of T5 are logits: with everyone's learning rate they hardly move.
BIAS_FACTOR = 10.0
# Weight of what the encoder said before, where a trained denoiser listens to it: at 3 its states move by 5% (squared)
# while every answer comes out right.
_KEEP = 3.0


def add_text_steps(parser: argparse.ArgumentParser) -> None:
    """The option of models whose text encoder is taught first."""
    parser.add_argument(
        "--text-steps",
        type=whole(0),
        default=400,
        help="steps of 96 captions before the first picture (default 400); 0 keeps the encoder of --weights as it is",
    )


def weights_folder(name: str) -> Path:
    """The folder of the model that ``--weights`` names.

    Raises:
        UsageError: a model that is not on this machine.
    """
    path = locate(name).path
    if path is None:
        raise UsageError(f"--weights: got {name!r}, allowed: a shipped model or a local Diffusers folder")
    return path


def begin_from_weights(name: str, model: nn.Module) -> None:
    """Take the parts of a model's folder into the model in training; the alignment read-outs stay new.

    Raises:
        ArtifactError: a part without weights, or with other ones than the model in training has.
    """
    folder = weights_folder(name)
    for part, module in model.named_children():
        if part.endswith("alignment"):
            continue
        if not (folder / part).is_dir():
            raise ArtifactError(f"{folder} has no {part}, which this model is made of")
        # By the part's own class, which knows the names that its weights have in files.
        state = type(module).from_pretrained(folder / part, dtype=torch.float32).state_dict()
        shapes = [{key: tuple(value.shape) for key, value in rows.items()} for rows in (state, module.state_dict())]
        if shapes[0] != shapes[1]:
            odd = sorted(key for key in {*shapes[0], *shapes[1]} if shapes[0].get(key) != shapes[1].get(key))
            raise ArtifactError(f"{folder / part} is not the {part} of such a model: {', '.join(odd[:3])} differ")
        module.load_state_dict(state)


def begin(
    options: argparse.Namespace,
    model: nn.Module,
    checkpoint: Path,
    teach: Callable[[argparse.Namespace, nn.Module], None] | None = None,
) -> None:
    """What a run begins with: its own checkpoint, ``--start-from``'s, or ``--weights`` and a taught text encoder.

    Args:
        options: of the run.
        model: in training; filled unless a checkpoint will fill it.
        checkpoint: of this run.
        teach: called with (options, model) where no checkpoint is the start.
    """
    if not checkpoint.exists() and options.start_from is None:
        if options.weights:
            begin_from_weights(options.weights, model)
        if teach is not None:
            teach(options, model)
    begin_from(options.start_from, model, checkpoint)


def teach_text(
    options: argparse.Namespace,
    encoder: Any,
    tokenizer,
    question: Question,
    masked: bool = True,
    slots: int | None = None,
) -> None:
    """Teach an encoder word order on captions, once for a run: the result lies in ``text/final`` of its folder.

    Args:
        options: of the run; with ``--weights`` the encoder stays near what it said before, and with ``--text-steps 0``
            it is not touched.
        encoder, tokenizer: of the model in training.
        question, masked, slots: see :func:`genkit.training.toys.shared.text_order.pretrain`.
    """
    if options.weights and not options.text_steps:
        return
    final = options.folder / "text" / "final"
    if process_rank() == 0 and not (final / "encoder.pt").exists():
        right = teach_order(
            encoder,
            tokenizer,
            question,
            keep=_KEEP if options.weights else 0.0,
            steps=options.text_steps,
            masked=masked,
            slots=slots,
            seed=options.seed,
        )
        final.mkdir(parents=True, exist_ok=True)
        (final / "right.json").write_text(json.dumps(right, indent=2) + "\n")
        atomic_save(encoder.state_dict(), final / "encoder.pt")
    wait_for_all()
    encoder.load_state_dict(torch.load(final / "encoder.pt", weights_only=True))
