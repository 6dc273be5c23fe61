"""Word weights of a run: written into its prompt as ``(word:1.3)``, read when resolved, in force while it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from genkit.errors import UsageError, shown
from genkit.pipelines.kinds import IMAGE
from genkit.pipelines.request import flag
from genkit.pipelines.settings import WordSettings
from genkit.pipelines.text import shares

if TYPE_CHECKING:
    from genkit.control.rules import Reweight
    from genkit.control.words import Weighted
    from genkit.pipelines.attention import Attention
    from genkit.pipelines.model import Model


#: How weights act: settings that mean nothing without a weight in a prompt.
_HOW = ("word_form", "word_steps", "word_frames", "word_eos")


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

    def told(self, settings: Any, name: str = "prompt") -> tuple[str, ...]:
        """What of the texts or of the settings does nothing, one line each; ``name`` as in :meth:`texts`."""
        if isinstance(settings, WordSettings):
            given = [flag(key) for key in _HOW if settings.given(key)] if not self else []
            idle = (
                (f"{', '.join(given)}: no effect, since the prompt weighs no word, as in (red:1.3)",) if given else ()
            )
            return (*self._loose(name), *idle)
        plain = [what for what, text in self.texts(name) if text and _weighs(text)]
        return tuple(
            f"weights such as (red:1.3) are read by genkit generate and genkit edit; in this {what} they are text"
            for what in plain
        )

    def _loose(self, name: str) -> list[str]:
        """What looks like a weight and is text, one line each; ``name`` as in :meth:`texts`."""
        told = []
        for what, found in ((name, self.prompt), ("negative prompt", self.negative)):
            if found is not None and found.loose:
                more = f" and {len(found.loose) - 1} more" if found.loose[1:] else ""
                told.append(
                    f"{shown(found.loose[0])}{more} in this {what} is text: a weight has two brackets, (red:1.3)"
                )
        return told

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
        start, stop = shares(settings.word_steps, "--word-steps")
        frames = shares(settings.word_frames, "--word-frames")
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
            into=getattr(type(settings), "weighed_role", None),
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

    check(model.outline, parts_of(model.outline, rules))
    if attention is not None:
        attention.check_beside(
            model,
            rules,
            "the weight of a word, which acts in every layer with text,",
            ", or take the weights out of the prompt",
        )


def _weighs(text: str) -> bool:
    """Whether genkit generate would read weights in a text."""
    from genkit.control.words import parse_weights

    try:
        return bool(parse_weights(text).words)
    except UsageError:
        return False


@contextmanager
def weighed(pipeline: Any, rules: Sequence[Reweight]) -> Iterator[Any]:
    """The pipeline with word weights for the time of the ``with``; yields the control, or None without rules."""
    if not rules:
        yield None
        return
    from genkit.control import Control, Rows

    with Control(pipeline, rules, rows=lambda batch, branch: Rows.of_call(batch, branch, 1)) as control:
        yield control
