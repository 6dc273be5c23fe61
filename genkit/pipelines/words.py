"""Word weights of a run: written into its prompt as ``(word:1.3)``, read when resolved, in force while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from genkit.errors import UsageError
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.settings import WordSettings

if TYPE_CHECKING:
    from genkit.control.rules import Reweight
    from genkit.control.words import Weighted
    from genkit.pipelines.attention import Attention
    from genkit.pipelines.model import Model


@dataclass(frozen=True)
class Words:
    """The weights in a run's texts.

    Args:
        prompt, negative: the texts without their weights, and the weights; None for a text that is not given.
    """

    prompt: Weighted | None = None
    negative: Weighted | None = None

    @classmethod
    def of(cls, settings: Any) -> Words:
        """Read the texts of settings that take word weights; the texts of others stay as they are.

        Raises:
            UsageError: a weight that has no meaning.
        """
        from genkit.control.words import Weighted, parse_weights

        read = parse_weights if isinstance(settings, WordSettings) else Weighted
        texts = (settings.prompt, settings.negative_prompt)
        return cls(*(None if text is None else read(text) for text in texts))

    def texts(self, name: str = "prompt") -> list[tuple[str, str | None]]:
        """(what it is, text without weights) of the prompt, which goes by ``name``, and of the negative prompt."""
        pairs = ((name, self.prompt), ("negative prompt", self.negative))
        return [(name, None if found is None else found.text) for name, found in pairs]

    def cut(self, *texts: str | None) -> Words:
        """The same with texts of which the end was dropped; weights of what was dropped go with it."""
        pairs = zip((self.prompt, self.negative), texts, strict=True)
        return Words(*(None if found is None or text is None else found.cut(text) for found, text in pairs))

    def __bool__(self) -> bool:
        return any(text is not None and text.words for text in (self.prompt, self.negative))

    def rules(self, settings: Any, model: Model, tokenizers: Mapping[str, Any]) -> tuple[Reweight, ...]:
        """The rules of a control; empty where nothing is weighed.

        Raises:
            UsageError: a word that the model does not read, or a model whose way of reading prompts is not known.
        """
        if not self:
            return ()
        from genkit.control import text_parts
        from genkit.control.words.weights import word_rules

        parts = text_parts(SimpleNamespace(**tokenizers), settings.max_sequence_length, model.class_name)
        start, stop = _shares(settings.word_steps, "--word-steps")
        frames = _shares(settings.word_frames, "--word-frames")
        timed = frames != (0, 1) or any(
            word.frames != (0, 1) for text in (self.prompt, self.negative) if text is not None for word in text.words
        )
        if timed and model.kind is IMAGE:
            raise UsageError(
                f"a word is weighed in a part of the clip only, and {model.class_name} makes pictures; leave the part "
                "out"
            )
        rules = word_rules(
            parts,
            self.prompt,
            self.negative,
            form=settings.word_form,
            start=start,
            stop=stop,
            frames=frames,
            include_eos=settings.word_eos,
        )
        return tuple(rules)


def check_words(rules: Sequence[Reweight], model: Model, attention: Attention | None) -> None:
    """Refuse what the run would refuse, before weights are read.

    Raises:
        UnsupportedError: a model without attention to text. UsageError: a method on the same layers.
    """
    if not rules:
        return
    from genkit.control.control import parts_of
    from genkit.patching.handle import check

    own = parts_of(model.outline, rules)
    check(model.outline, own)
    if attention is None:
        return
    try:
        check(model.outline, [*own, *attention.parts])
    except UsageError as error:
        raise UsageError(
            f"word weights of the prompt and --attention {attention.parts[0].method.name} work on the same layers of "
            f"{model.class_name}: take the weights out of the prompt, or leave the method out"
        ) from error


@contextmanager
def weighed(pipeline: Any, rules: Sequence[Reweight]) -> Iterator[Any]:
    """The pipeline with word weights for the time of the ``with``; yields the control, or None without rules."""
    if not rules:
        yield None
        return
    from genkit.control import Control, Rows

    with Control(pipeline, rules, rows=lambda batch, branch: Rows.of_call(batch, branch, 1)) as control:
        yield control


def _shares(text: str | None, what: str) -> tuple[float, float]:
    """``"0.5:1"`` as two shares; either end may be left out."""
    if text is None:
        return 0.0, 1.0
    begin, sign, end = text.partition(":")
    try:
        found = float(begin or 0), float(end or 1)
    except ValueError:
        found = (1.0, 0.0)
    if not sign or not 0 <= found[0] < found[1] <= 1:
        raise UsageError(f"{what}: got {text!r}, allowed: two shares from 0 to 1 such as 0.5:1, the first below")
    return found
