"""The rules of a control: small frozen values that say what happens to which rows, where and when."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from genkit.control.alignment import Alignment
from genkit.control.regions import Region, Seen, Tokens, as_tokens
from genkit.control.rows import Rows
from genkit.control.where import Where
from genkit.errors import UsageError, explain

if TYPE_CHECKING:
    import torch

FORMS = ("renormalised", "multiplicative", "additive")


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule:
    """What all rules have.

    Args:
        where: where and when; default: everywhere the rule can be.
    """

    where: Where = dataclasses.field(default_factory=Where)
    usual: ClassVar[tuple[str, ...]] = ()
    needs_text: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.where, Where):
            raise UsageError(explain("where", self.where, "genkit.control.Where(...)"))
        self.check()

    def check(self) -> None:
        """Raise UsageError for settings that make no sense."""

    def concerns(self, rows: Rows) -> tuple[int, ...]:
        """Numbers of the rows the rule changes or reads."""
        raise TypeError(f"{type(self).__name__} defines no concerns()")

    def __str__(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True, eq=False, kw_only=True)
class _Into(Rule):
    """A rule on the rows of one role, of several, or of all (None)."""

    into: str | tuple[str, ...] | None = None

    def concerns(self, rows: Rows) -> tuple[int, ...]:
        return rows_of(rows, self.into, self.where.conditional)

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {_names(self.into)}"


@dataclass(frozen=True, eq=False)
class Take(Rule):
    """Rows take queries, keys or values of other rows.

    All takes of a call read what the model made: a row that gives what it takes itself gives its own.

    Args:
        what: any of the letters q, k, v.
        of, into: roles that give and take, paired within each half of guidance (see ``Rows.pairs``).
        blend: 1 = theirs instead of one's own, 0 = nothing happens, between: ``blend * theirs + (1 - blend) * own``.
        temperature: factor of the taking rows' scores (their queries are multiplied by it).
        tokens: "grid" = in joint attention only the picture's tokens, the text's stay the row's own; "all" = all.

    ``Take("qk")`` gives the other row's attention map with the own values: prompt-to-prompt's injection of maps,
    without a map. ``Take("kv")`` is mutual self-attention (MasaCtrl). Cost: copies of rows.
    """

    what: str
    of: str
    into: str
    blend: float = 1.0
    temperature: float = 1.0
    tokens: Literal["grid", "all"] = "grid"
    usual: ClassVar[tuple[str, ...]] = ("self", "joint")

    def check(self) -> None:
        if not isinstance(self.what, str) or not self.what or set(self.what) - set("qkv"):
            raise UsageError(explain("take", self.what, "one or several of the letters q, k, v"))
        if not 0 <= self.blend <= 1:
            raise UsageError(explain("take.blend", self.blend, "a number from 0 to 1"))
        if not self.temperature > 0:
            raise UsageError(explain("take.temperature", self.temperature, "a number > 0"))
        if self.tokens not in ("grid", "all"):
            raise UsageError(explain("take.tokens", self.tokens, ("grid", "all")))

    def concerns(self, rows: Rows) -> tuple[int, ...]:
        return tuple(taker for _, taker in rows.pairs(self.of, self.into, self.where.conditional))

    def __str__(self) -> str:
        return f"take {self.what} {self.of}->{self.into}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Extra(Rule):
    """Rows read further keys and values besides their own, in one softmax.

    Args:
        of: role whose keys and values are read in addition, or a function from :class:`Seen` to (keys, values), both
            (rows that read, M, H, D).
        into: role that reads.
        queries: tokens that read them; None = all of the picture.
        keys: tokens of the other row that are read: a region, or a function that gives their numbers (a picture moved
            and scaled by repeating rows and columns); None = all of the picture. Not for functions as ``of``.
        weight: factor of their share; ``exp`` of a bonus on the scores.

    Cost: attention of the reading queries to M more keys.
    """

    of: str | Callable[[Seen], tuple[torch.Tensor, torch.Tensor]]
    into: str
    queries: Tokens | Region | None = None
    keys: Region | None = None
    weight: float = 1.0
    usual: ClassVar[tuple[str, ...]] = ("self", "joint")

    def check(self) -> None:
        if not self.weight > 0:
            raise UsageError(explain("extra.weight", self.weight, "a number > 0; leave the rule out for 0"))
        if self.queries is not None:
            as_tokens(self.queries, "extra.queries")

    def concerns(self, rows: Rows) -> tuple[int, ...]:
        if callable(self.of):
            return rows.index(self.into, self.where.conditional)
        return tuple(taker for _, taker in rows.pairs(self.of, self.into, self.where.conditional))

    def __str__(self) -> str:
        return f"extra {'segment' if callable(self.of) else self.of}->{self.into}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Forbid(_Into):
    """Some tokens do not read some others.

    Args:
        queries, keys: the two sets; no token of the first reads one of the second. Masks are regions of the picture.
        into: role or roles; None = all rows.

    A query must be left at least one key. Cost: less than dense; queries that see the same keys run together.
    """

    queries: Tokens | Region
    keys: Tokens | Region
    usual: ClassVar[tuple[str, ...]] = ("self", "joint")

    def check(self) -> None:
        as_tokens(self.queries, "forbid.queries"), as_tokens(self.keys, "forbid.keys")

    @staticmethod
    def between(regions: list[torch.Tensor], into: str | None = None, where: Where | None = None) -> list[Forbid]:
        """Isolation: tokens of one region do not read those of another; those outside read and are read by all.

        Args:
            regions: masks (H, W) or (T, H, W); where they overlap a token belongs to each.
        """
        import torch

        rules = []
        for number, own in enumerate(regions):
            others = [other.float() for place, other in enumerate(regions) if place != number]
            if others:
                union = torch.stack(others).sum(0).clamp(max=1)
                rules.append(Forbid(queries=own, keys=union, into=into, where=where or Where()))
        return rules


@dataclass(frozen=True, eq=False, kw_only=True)
class ScaleKeys(_Into):
    """Scores are multiplied by a factor per key, for some queries; other queries keep theirs.

    Args:
        factor: (grid tokens,) or (rows concerned, grid tokens) as a tensor for one grid, or a function from
            :class:`Seen` to one. Keys of text keep their scores. A factor of 0 makes a score 0; it hides nothing.
        queries: tokens whose scores are scaled; None = all.
        into: role or roles; None = all rows.
    """

    factor: torch.Tensor | Callable[[Seen], torch.Tensor]
    queries: Tokens | Region | None = None
    usual: ClassVar[tuple[str, ...]] = ("self", "joint")

    def check(self) -> None:
        as_tokens(self.queries, "scale.queries")


@dataclass(frozen=True, eq=False, kw_only=True)
class Mix(Rule):
    """Rows read another row's keys and values as well, in a softmax of its own, and mix the two answers.

    Args:
        of, into: role whose keys and values are read, role that reads them.
        share: of the answer from there, 0..1; the own one's is ``1 - share``.
        queries: tokens that read them; None = all of the picture.

    In cross-attention a region of one prompt's picture so follows another prompt. Cost: attention of the reading
    queries to the other row's keys.
    """

    of: str
    into: str
    share: float
    queries: Tokens | Region | None = None
    usual: ClassVar[tuple[str, ...]] = ("cross",)

    def check(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(explain("mix.share", self.share, "a number from 0 to 1"))
        as_tokens(self.queries, "mix.queries")

    def concerns(self, rows: Rows) -> tuple[int, ...]:
        return tuple(taker for _, taker in rows.pairs(self.of, self.into, self.where.conditional))

    def __str__(self) -> str:
        return f"mix {self.of}->{self.into}"


@dataclass(frozen=True, eq=False, kw_only=True)
class _Maps(Rule):
    """A rule that writes maps of words with those of another row.

    Args:
        of, into: role whose maps are taken, role whose maps are written.
        blend: 1 = theirs, 0 = one's own.
        renormalise: whether a query's weights are made to sum to 1 again; None = in joint attention only, where one
            softmax covers text and picture.

    Cost: the explicit weights of the columns that are written.
    """

    of: str
    into: str
    blend: float = 1.0
    renormalise: bool | None = None
    usual: ClassVar[tuple[str, ...]] = ("cross", "joint")
    needs_text: ClassVar[bool] = True

    def concerns(self, rows: Rows) -> tuple[int, ...]:
        return tuple(taker for _, taker in rows.pairs(self.of, self.into, self.where.conditional))

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {self.of}->{self.into}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Refine(_Maps):
    """Maps of words that both prompts share are those of another row; new words keep their own (prompt-to-prompt).

    Args:
        of, into, blend, renormalise: role whose maps are taken, role whose maps are written, share of theirs (1),
            whether weights sum to 1 again (None = in joint attention).
        alignment: pairs of the two prompts' tokens, in positions among the text tokens.
    """

    alignment: Alignment


@dataclass(frozen=True, eq=False, kw_only=True)
class Replace(_Maps):
    """Maps of all words are those of another row, moved by a matrix: a word takes the map of the one it replaces.

    Args:
        of, into, blend, renormalise: see :class:`Refine`.
        matrix: (source tokens, target tokens) over the whole text; see :func:`genkit.control.replacement`.
    """

    matrix: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Reweight(_Into):
    """Some words count more or less.

    Args:
        tokens: positions among the text tokens.
        weight: 1 = unchanged, 0 = as if the words were not there (except "additive", where 0 = unchanged).
        form: "renormalised": a query's weights keep their sum, the same as adding ``log(weight)`` to the words' scores
            (where a refine or replace writes maps in the same call, to those that it wrote);
            "multiplicative": weights times ``weight``; "additive": weights plus ``weight``; both as they come.
        region: tokens of the picture it holds for; None = all.
        into: role or roles; None = all rows.

    Source: MotionCLR; the renormalised form is the one without a drift of brightness.
    """

    tokens: tuple[int, ...]
    weight: float
    form: str = "renormalised"
    region: Region | None = None
    usual: ClassVar[tuple[str, ...]] = ("cross", "joint")
    needs_text: ClassVar[bool] = True

    def check(self) -> None:
        if self.form not in FORMS:
            raise UsageError(explain("reweight.form", self.form, FORMS))
        if self.form != "additive" and not self.weight >= 0:
            raise UsageError(explain("reweight.weight", self.weight, "a number >= 0"))
        if not self.tokens:
            raise UsageError("reweight: there is no token to weigh")

    def __str__(self) -> str:
        return f"reweight {_names(self.into)} x{self.weight:g}"


@dataclass(frozen=True, eq=False, kw_only=True)
class ReadMaps(Rule):
    """Weights of text tokens per picture token, mean over heads and layers, gathered while the model runs.

    Args:
        name: under which ``control.maps`` gives them.
        of: role or roles to read; None = all rows.
        tokens: positions among the text tokens; None = all of them.
        kind: "weights" after softmax, "logits" = scaled scores before it.
        before: as they were before rules wrote them; default: as they are used.
        grad: keep the graph, for gradients with respect to the latents; default: detached.
    """

    name: str
    of: str | tuple[str, ...] | None = None
    tokens: tuple[int, ...] | None = None
    kind: Literal["weights", "logits"] = "weights"
    before: bool = False
    grad: bool = False
    usual: ClassVar[tuple[str, ...]] = ("cross", "joint")
    needs_text: ClassVar[bool] = True

    def check(self) -> None:
        if self.kind not in ("weights", "logits"):
            raise UsageError(explain("readmaps.kind", self.kind, ("weights", "logits")))

    def concerns(self, rows: Rows) -> tuple[int, ...]:
        return rows_of(rows, self.of, self.where.conditional)

    def __str__(self) -> str:
        return f"read {self.name}"


@dataclass(frozen=True, eq=False, kw_only=True)
class KeepPairs(Rule):
    """Queries and keys of the picture's tokens are kept until the next call, for :meth:`Control.propagate`.

    Args:
        name: under which they are kept.
        of: role or roles; None = all rows.

    Cost: memory of the queries and keys of the chosen layers; choose them by ``where`` (26 MB for five layers of
    Stable Diffusion 1.5 at 32 x 32 tokens and two rows in half precision).
    """

    name: str
    of: str | tuple[str, ...] | None = None
    usual: ClassVar[tuple[str, ...]] = ("self", "joint")

    def concerns(self, rows: Rows) -> tuple[int, ...]:
        return rows_of(rows, self.of, self.where.conditional)

    def __str__(self) -> str:
        return f"keep {self.name}"


def rows_of(rows: Rows, roles: str | tuple[str, ...] | None, conditional: bool | None) -> tuple[int, ...]:
    """Row numbers of one role, of several, or of all rows (None), in the order of the batch."""
    wanted = rows.roles if roles is None else (roles,) if isinstance(roles, str) else roles
    return tuple(sorted(number for role in wanted for number in rows.index(role, conditional)))


def _names(roles: str | tuple[str, ...] | None) -> str:
    return "all rows" if roles is None else roles if isinstance(roles, str) else "+".join(roles)
