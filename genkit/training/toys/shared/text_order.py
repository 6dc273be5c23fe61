"""Teaching a T5 or UMT5 encoder which words belong together, on captions alone, before it sees a picture.

The only word positions these encoders have are relative biases of the attention logits. Left to the denoiser's loss
they hardly move, and "a red circle and a blue square" stays the same to the model as "a red square and a blue circle".
So the biases begin local (:func:`local_bias`: every head of a layer prefers another neighbour), and the encoder first
learns to answer, at every object's colour and shape word, what that object is: two minutes of one core. The answers are
read by one linear layer, which is dropped afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from genkit.errors import UsageError, explain
from genkit.training.engine.optim import muon_adamw
from genkit.world.caption import caption
from genkit.world.picture_caption import picture_caption
from genkit.world.picture_scene import OPPOSITES, RELATIONS, TEXTURES, Picture, draw_picture
from genkit.world.scene import Scene, draw_scene
from genkit.world.vocabulary import BACKGROUNDS, COLOURS, MOTIONS, SHAPE_WORDS, SHAPES, SIZE_WORDS, SIZES

#: Buckets of relative positions, one for every head in turn: one word before, one after, two before, two after.
_NEIGHBOURS = (1, 17, 2, 18)
_LOCAL = 4.0
_IGNORED = -100
_NONE = "none"
_SIDES = (_NONE, *RELATIONS)
_ROLES = ("object", "background")
_ARTICLES = frozenset(("a", "an", "the", "and"))
_SHAPE_OF = {word: shape for shape, words in SHAPE_WORDS.items() for word in words}
_SIZE_WORDS = frozenset(word for words in SIZE_WORDS.values() for word in words)

#: What is asked of every object's words, by kind of captions, with the possible answers.
PICTURE_QUESTIONS: dict[str, Sequence[str]] = {
    "role": _ROLES,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "texture": TEXTURES,
    "is": _SIDES,
    "has": _SIDES,
}
CLIP_QUESTIONS: dict[str, Sequence[str]] = {
    "role": _ROLES,
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": SIZES,
    "motion": MOTIONS,
}


@torch.no_grad()
def local_bias(encoder: Any, amount: float = _LOCAL) -> None:
    """Add ``amount`` to the bias with which every head of every layer that has own biases looks at one neighbour.

    Args:
        encoder: a ``T5EncoderModel`` (biases in its first layer, which the others share) or ``UMT5EncoderModel``.
        amount: logits; about 4 is what word order needs, where training alone reaches 0.5.

    Raises:
        UsageError: an encoder without relative biases.
    """
    tables = [module for name, module in encoder.named_modules() if name.endswith("relative_attention_bias")]
    if not tables:
        raise UsageError(explain("encoder", type(encoder).__name__, ("T5EncoderModel", "UMT5EncoderModel")))
    for table in tables:
        for head in range(table.weight.shape[1]):
            table.weight[_NEIGHBOURS[head % len(_NEIGHBOURS)], head] += amount


@dataclass(frozen=True)
class Question:
    """What the words of a caption are asked.

    Args:
        questions: name -> possible answers.
        draw: a caption and, for each of its words, the right answers by name, from a source of randomness.
    """

    questions: dict[str, Sequence[str]]
    draw: Callable[[np.random.Generator], tuple[str, list[dict[str, str]]]]


def _word_answers(text: str, actors: dict[str, dict[str, str]]) -> list[dict[str, str]]:
    """Answers per word; a colour word before a shape word and that shape word belong to the object of that colour."""
    said = text.replace(",", " ").split()
    answers: list[dict[str, str]] = [{} for _ in said]
    for place, word in enumerate(said):
        if word not in BACKGROUNDS and word not in COLOURS:
            continue
        if place + 1 == len(said) or said[place + 1] not in _SHAPE_OF:
            answers[place] = {"role": "background"}
            continue
        start = next(i for i in range(place, -1, -1) if said[i] in _ARTICLES)
        known = dict(actors[word])
        if not _SIZE_WORDS.intersection(said[start:place]):
            known.pop("size")
        answers[place] = answers[place + 1] = {"role": "object", **known}
    return answers


def picture_answers(picture: Picture, text: str) -> list[dict[str, str]]:
    """Answers to :data:`PICTURE_QUESTIONS` for every word of a picture's caption."""
    known = {}
    for index, actor in enumerate(picture.actors):
        row = {"colour": actor.colour, "shape": actor.shape, "size": actor.size, "texture": actor.texture}
        own = [relation for first, relation, _ in picture.relations if first == index]
        others = [relation for _, relation, second in picture.relations if second == index]
        row["is"] = own[0] if own else _NONE
        if len(others) < 2:
            row["has"] = OPPOSITES[others[0]] if others else _NONE
        known[actor.colour] = row
    return _word_answers(text, known)


def clip_answers(scene: Scene, text: str) -> list[dict[str, str]]:
    """Answers to :data:`CLIP_QUESTIONS` for every word of a clip's caption."""
    known = {}
    for actor in scene.actors:
        known[actor.colour] = {"colour": actor.colour, "shape": actor.shape, "size": actor.size, "motion": actor.motion}
    return _word_answers(text, known)


def picture_question(side: int = 128) -> Question:
    """Captions of pictures, mostly of several objects, on all backgrounds."""

    def draw(rng: np.random.Generator):
        picture, _ = draw_picture(rng, side, side, shares=(0.2, 0.4, 0.4), backgrounds=tuple(BACKGROUNDS))
        text = picture_caption(picture, rng)
        return text, picture_answers(picture, text)

    return Question(PICTURE_QUESTIONS, draw)


def clip_question() -> Question:
    """Captions of clips, two thirds of them of two objects, on all backgrounds."""

    def draw(rng: np.random.Generator):
        scene = draw_scene(rng, two_share=0.67, backgrounds=tuple(BACKGROUNDS))
        text = caption(scene, rng)
        return text, clip_answers(scene, text)

    return Question(CLIP_QUESTIONS, draw)


class WordReader(nn.Module):
    """An encoder and the linear layer that answers questions from the states of words."""

    def __init__(self, encoder: Any, question: Question, width: int):
        super().__init__()
        self.encoder = encoder
        self.question = question
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.read = nn.Linear(width, sum(len(answers) for answers in question.questions.values()))

    def answers(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, words, answers) by question."""
        sizes = [len(answers) for answers in self.question.questions.values()]
        return dict(zip(self.question.questions, self.read(self.norm(states)).split(sizes, -1), strict=True))


def draw_batch(question: Question, tokenizer, count: int, rng: np.random.Generator, slots: int | None = None):
    """Token numbers, their mask, and the right answers' numbers by question, (count, slots) each.

    Args:
        question: what is asked.
        tokenizer: with one token for every word of the grammar and no start token.
        count: captions.
        rng: source of randomness.
        slots: length to pad to; None for the longest caption.
    """
    texts, told = zip(*(question.draw(rng) for _ in range(count)), strict=True)
    padding = {"padding": True} if slots is None else {"padding": "max_length", "max_length": slots, "truncation": True}
    batch = tokenizer(list(texts), return_tensors="pt", **padding)
    right = {name: torch.full(batch.input_ids.shape, _IGNORED) for name in question.questions}
    for row, answers in enumerate(told):
        for place, known in enumerate(answers[: batch.input_ids.shape[1]]):
            for name, answer in known.items():
                right[name][row, place] = list(question.questions[name]).index(answer)
    return batch.input_ids, batch.attention_mask, right


def pretrain(
    encoder: Any,
    tokenizer,
    question: Question,
    steps: int = 400,
    batch: int = 96,
    lr: float = 3e-3,
    seed: int = 0,
    masked: bool = True,
    keep: float = 0.0,
    teacher: nn.Module | None = None,
    slots: int | None = None,
    tell: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train an encoder until its words know what they belong to.

    Args:
        encoder: trained in place; give it a :func:`local_bias` first.
        tokenizer: its tokenizer.
        question: from :func:`picture_question` or :func:`clip_question`.
        steps: of ``batch`` captions; the learning rate falls to a twentieth by a cosine.
        batch: captions per step.
        lr: of the matrices (Muon) and the others (AdamW); biases have ten times as much.
        seed: of captions and of the read-out.
        masked: give the encoder the attention mask (Wan does, Flux does not).
        keep: weight of the distance to ``teacher``'s states, so that a denoiser trained on them still understands.
        teacher: the encoder before :func:`local_bias`.
        slots: padded length, for encoders whose padding is read.
        tell: called every 20 steps with the step and figures.

    Returns:
        Share of right answers by question on the last tenth of the steps, and ``kept``, the relative squared distance
        to the teacher.
    """
    rng = np.random.default_rng((seed, 20))
    torch.manual_seed(seed)
    reader = WordReader(encoder, question, encoder.config.d_model)
    optimizer = muon_adamw(
        reader.named_parameters(), lr, adam_names=("shared", "read"), factors={"relative_attention": 10.0}
    )
    found: dict[str, list[float]] = {}
    for step in range(steps):
        rate = lr * min(1.0, (step + 1) / 20) * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        ids, mask, right = draw_batch(question, tokenizer, batch, rng, slots)
        given = {"attention_mask": mask} if masked else {}
        states = encoder(ids, **given).last_hidden_state
        logits = reader.answers(states)
        loss = sum(F.cross_entropy(logits[name].flatten(0, 1), right[name].flatten()) for name in logits)
        figures = {name: _share(logits[name], right[name]) for name in logits}
        if teacher is not None:
            with torch.no_grad():
                known = teacher(ids, **given).last_hidden_state
            weight = mask[..., None].to(states) if masked else torch.ones_like(states[..., :1])
            apart = ((states - known).square() * weight).sum() / ((known.square() * weight).sum())
            figures["kept"] = apart.item()
            loss = loss + keep * apart
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        if step >= 0.9 * steps:
            for name, value in figures.items():
                found.setdefault(name, []).append(value)
        if tell is not None and step % 20 == 0:
            tell(step, {"loss": loss.item(), **figures})
    return {name: float(np.mean(values)) for name, values in found.items()}


def teach_order(encoder: Any, tokenizer, question: Question, keep: float = 0.0, **options) -> dict[str, float]:
    """:func:`local_bias` and :func:`pretrain`; with ``keep`` above zero the encoder stays near what it said before."""
    teacher = copy.deepcopy(encoder).eval().requires_grad_(False) if keep else None
    local_bias(encoder)
    return pretrain(encoder, tokenizer, question, keep=keep, teacher=teacher, **options)


def _share(logits: torch.Tensor, right: torch.Tensor) -> float:
    asked = right != _IGNORED
    return (logits.argmax(-1)[asked] == right[asked]).float().mean().item()
