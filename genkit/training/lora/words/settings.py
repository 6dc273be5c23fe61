"""Settings for learning new words from one picture, and the rules between them; nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from genkit.errors import UsageError, counted, explain, shown
from genkit.pipelines.request import Settings, flag, option
from genkit.pipelines.text import as_texts
from genkit.schema import Rule

UNIFORM, REWEIGHTED = "uniform", "reweighted"
SAMPLINGS = (UNIFORM, REWEIGHTED)
#: How many words a picture may teach.
FEWEST, MOST = 2, 3
_GROUP = "Words from one picture"
_SHARE = Rule(low=0, high=1)


def as_words(value: Any, what: str) -> Any:
    """Texts ``phrase=start``: of a mapping, of one text with commas, or of a list of such texts."""
    if isinstance(value, Mapping):
        return tuple(f"{phrase}={start}" for phrase, start in value.items())
    texts = as_texts(value, what)
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        return texts
    return tuple(part.strip() for text in texts for part in text.split(","))


@dataclass(frozen=True)
class WordSettings(Settings):
    """Two or three new words of one picture, each with a part of it that the model's own attention finds."""

    learn_words: tuple[str, ...] = option(
        (), "Learn new words from ONE picture: its subjects as the caption calls them, the last word of each new, and "
        "a known word to begin with: 'a blorp=circle'. Repeatable; in a file also a mapping.", group=_GROUP,
        parse=as_words, prose=True,
    )  # fmt: skip
    word_sampling: str = option(
        UNIFORM, "Which of the words a step's prompt has: uniform (all choices alike) or reweighted (single words by "
        "how far their attention is from their part).", group=_GROUP, rule=Rule(choices=SAMPLINGS),
    )  # fmt: skip
    word_learning_rate: float | None = option(
        None, "Learning rate of the words' embeddings; learning_rate when left out.", group=_GROUP,
        rule=Rule(low=1e-30, high=100, says="a number above 0, at most 100"),
    )  # fmt: skip
    attention_loss_weight: float = option(
        1.0, "Weight of how far the words' attention is from their parts.", group=_GROUP, rule=Rule(low=0, high=1e6)
    )
    attention_threshold: float = option(
        0.1, "By how much a word's map must exceed all others where its part is.", group=_GROUP, rule=_SHARE
    )
    mask_update_steps: int = option(
        20, "Steps after which the parts are looked for anew; the prompt then has all words.", group=_GROUP,
        rule=Rule(low=1, high=1_000_000_000),
    )  # fmt: skip
    mask_ssim_threshold: float = option(
        0.8, "New parts are taken where their structural similarity to the old ones is at least this.", group=_GROUP,
        rule=Rule(low=-1, high=1),
    )  # fmt: skip
    prior_prompts: tuple[str, ...] = option(
        (), "Prompts of pictures that the model makes before training and must go on making (prior preservation): one "
        "goes with every step. Repeatable.", group=_GROUP, parse=as_texts, prose=True,
    )  # fmt: skip
    num_prior_images: int = option(
        200, "How many of them, over all prompts.", group=_GROUP, rule=Rule(low=1, high=100_000)
    )
    prior_weight: float = option(
        1.0, "Weight of their loss; 0 to do without them.", group=_GROUP, rule=Rule(low=0, high=1e6)
    )


def check_words(settings: Any) -> None:
    """Rules between the settings of a run, as far as they are known without a model.

    Raises:
        UsageError: settings that contradict each other or have no effect.
    """
    own = [name for name in WordSettings.__annotations__ if name != "learn_words"]
    if not settings.learn_words:
        for name in own:
            if _differs(settings, name):
                raise UsageError(f"{flag(name)} has no effect without --learn-words")
        return
    pairs_of(settings.learn_words)
    for name, reason in _AGAINST.items():
        if _differs(settings, name):
            raise UsageError(f"{flag(name)} does not go with --learn-words: {reason}; leave it out")
    if settings.prior_weight and not settings.prior_prompts:
        raise UsageError(
            "--learn-words needs --prior-prompts: pictures of them keep the rest of the model (the paper's is 'a photo "
            "at the beach'; better name what the model is for), or --prior-weight 0 to do without"
        )
    if not settings.prior_weight:
        for name in ("prior_prompts", "num_prior_images"):
            if _differs(settings, name):
                raise UsageError(f"{flag(name)} has no effect with --prior-weight 0")


def pairs_of(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    """(phrase, known word to begin with) of every subject.

    Raises:
        UsageError: a text of another form, too few or too many, or a word twice.
    """
    pairs = []
    for text in texts:
        phrase, sign, start = (" ".join(part.split()) for part in text.partition("="))
        if not (sign and phrase and start) or " " in start:
            raise UsageError(
                explain("--learn-words", text, "a subject of the caption and one known word, such as 'a blorp=circle'")
            )
        pairs.append((phrase, start))
    if not FEWEST <= len(pairs) <= MOST:
        raise UsageError(explain("--learn-words", counted(len(pairs), "word"), f"{FEWEST} or {MOST}"))
    words = [word_of(phrase).lower() for phrase, _ in pairs]
    for word in words:
        if words.count(word) > 1:
            raise UsageError(f"--learn-words: {shown(word)} is given to two subjects; every subject has its own word")
    return pairs


def word_of(phrase: str) -> str:
    """The new word of a phrase: its last."""
    return phrase.split()[-1]


def _differs(settings: Any, name: str) -> bool:
    return getattr(settings, name) != type(settings).__dataclass_fields__[name].default


_OWN_ATTENTION = "the parts are read from the model's own attention"
#: What cannot be set beside, and why.
_AGAINST = {
    "mix": "finished LoRAs learn no words",
    "attention": _OWN_ATTENTION,
    "recipe": _OWN_ATTENTION,
    "masks": "the parts are found by the model",
    "held_out": "there is one picture",
    "gradient_checkpointing": "blocks that run twice would be read twice",
    "compile": "a compiled model's attention cannot be read",
    "offload": "the text encoder is needed in every step",
    "train_batch_size": "a step has the one picture; --gradient-accumulation-steps makes larger batches",
}
