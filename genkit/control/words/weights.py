"""Word weights in force on a pipeline: how much the words of a prompt count in attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genkit.control.control import Control
from genkit.control.regions import Seen
from genkit.control.rows import Rows
from genkit.control.rules import FORMS, Reweight
from genkit.control.spans import TextPart, find_words, text_parts, tokens_at
from genkit.control.where import Where
from genkit.control.words.syntax import MOST, Emphasis, Weighted, check_frames, parse_weights
from genkit.errors import UsageError, explain
from genkit.patching import Report

if TYPE_CHECKING:
    import torch

EVERYWHERE = (0.0, 1.0)
_ROLES = ("cross", "joint", "audio_cross")  # who reads the prompt: the picture, and sound


class WordWeights:
    """Lets words of a prompt count more or less while it is in force.

    Emphasis, de-emphasis and erasing act on the attention from the picture to the words, in every layer; the text
    encoder reads the plain prompt. For strong removal use a negative prompt as well: the other words carry some of it.

    Args:
        pipe: a Diffusers pipeline.
        prompt: with weights written into it (``(red:1.4)``, see :func:`parse_weights`) or plain.
        weights: further weights by word: a number, or (number, (start, stop)) for a share of a clip.
        negative_prompt: likewise; its weights act on the unconditional half.
        form: "renormalised" (default; weights keep their sum, no drift of brightness), "multiplicative" (DiTCtrl,
            MotionCLR's erase) or "additive" (MotionCLR's emphasis: a weight of 1.3 adds 0.3). 1 changes nothing in any.
        start, stop: half-open share of the sampling steps.
        include_eos: also weigh the token that ends the prompt, where encoders such as CLIP's keep a summary.
        slots: text tokens of the run (``max_sequence_length``), where they are not the pipeline's default.
        prompts: pictures of one call (prompts times pictures per prompt), all of this prompt.

    Raises:
        UsageError: a weight, word or share that has no meaning; a pipeline whose way of reading prompts is not known.

    Cost: a bias on the scores; nothing is measurable beside the model. Multiplicative and additive forms also compute
    the weights of these words.

    Source: MotionCLR; DiTCtrl, arXiv 2412.18597.

    Example:
        >>> import genkit
        >>> pipe = genkit.load("toy-image")
        >>> with genkit.WordWeights(pipe, "a (red:2) circle on a (white:0.5) background") as words:
        ...     image = pipe(words.prompt, num_inference_steps=2, output_type="np").images[0]
        >>> words.prompt
        'a red circle on a white background'
    """

    def __init__(
        self,
        pipe: Any,
        prompt: str,
        weights: Mapping[str, float | tuple[float, tuple[float, float]]] | None = None,
        *,
        negative_prompt: str | None = None,
        form: str = "renormalised",
        start: float = 0.0,
        stop: float = 1.0,
        include_eos: bool = False,
        slots: int | None = None,
        prompts: int = 1,
    ):
        found = parse_weights(prompt)
        found = Weighted(found.text, (*found.words, *_named(found.text, weights or {})))
        negative = None if negative_prompt is None else parse_weights(negative_prompt)
        self.prompt = found.text
        self.negative_prompt = None if negative is None else negative.text
        rules = word_rules(
            text_parts(pipe, slots), found, negative, form=form, start=start, stop=stop, include_eos=include_eos
        )
        self.control: Control | None = None
        if rules:
            self.control = Control(pipe, rules, rows=lambda batch, branch: Rows.of_call(batch, branch, prompts))

    def report(self) -> Report | None:
        """What ran; None when nothing is weighed."""
        return None if self.control is None else self.control.report()

    def remove(self) -> None:
        """Restore the pipeline bit for bit. Twice is harmless."""
        if self.control is not None:
            self.control.remove()

    def __enter__(self) -> WordWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def word_rules(
    parts: Sequence[TextPart],
    prompt: Weighted | None,
    negative: Weighted | None = None,
    *,
    form: str = "renormalised",
    start: float = 0.0,
    stop: float = 1.0,
    frames: tuple[float, float] = EVERYWHERE,
    include_eos: bool = False,
    into: str | None = None,
) -> list[Reweight]:
    """The rules of a control that weigh the words of a prompt and of a negative prompt.

    Args:
        parts: how the pipeline reads prompts, see :func:`genkit.control.text_parts`.
        frames: share of a clip for words that name none.
        into: role of the rows; None = all. The others: see :class:`WordWeights`.
    """
    if form not in FORMS:
        raise UsageError(explain("form of word weights", form, FORMS))
    check_frames(frames, "the part of the clip for word weights")
    rules = []
    for text, conditional in ((prompt, True), (negative, False)):
        if text is None:
            continue
        for word in text.words:
            if word.weight == 1:
                continue
            tokens = tokens_at(parts, text.text, [(word.start, word.stop)])
            if include_eos:
                tokens += tuple(position for part in parts for position in part.end(text.text))
            window = word.frames if word.frames != EVERYWHERE else frames
            rules.append(
                Reweight(
                    tokens=tokens,
                    weight=word.weight - 1 if form == "additive" else word.weight,
                    form=form,
                    into=into,
                    region=None if window == EVERYWHERE else _frames(window),
                    where=Where(roles=_ROLES, start=start, stop=stop, conditional=conditional),
                )
            )
    return rules


def _named(text: str, weights: Mapping[str, Any]) -> list[Emphasis]:
    """Weights given by word as places in the prompt; every occurrence of a word counts."""
    found = []
    for word, given in weights.items():
        weight, frames = given if isinstance(given, tuple) else (given, EVERYWHERE)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight <= MOST:
            raise UsageError(explain(f"weight of {word!r}", weight, f"a number from 0 to {MOST:g}"))
        check_frames(frames, f"the part of the clip for {word!r}")
        found += [Emphasis(*place, float(weight), tuple(frames)) for place in find_words(text, word)]
    return found


def _frames(window: tuple[float, float]) -> Callable[[Seen], torch.Tensor]:
    """The picture tokens, or those of sound, of a share of a clip, as a region of a rule; at least one frame."""

    def region(seen: Seen) -> torch.Tensor:
        import torch

        layout = seen.site.layout
        count, area = (layout.grid[0], layout.frame_tokens) if layout.has_grid else (layout.length, 1)
        if count == 1 and layout.has_grid:
            raise UsageError("a word is weighed in a part of the clip only, and this is a picture; leave the part out")
        first = min(round(window[0] * count), count - 1)
        last = max(round(window[1] * count), first + 1)
        flags = torch.zeros(count, area, dtype=torch.bool)
        flags[first:last] = True
        return flags.flatten()

    return region
