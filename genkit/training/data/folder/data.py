"""Folders of a user's files as one data set: every sample, how often it comes, which ones are held out. No model is
needed for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from genkit.errors import ArtifactError, UsageError, counted
from genkit.reading.files import place
from genkit.training.data.folder.batches import Batches
from genkit.training.data.folder.contents import Contents
from genkit.training.data.folder.cuts import Cut
from genkit.training.data.folder.items import Folder, Item, read_folder
from genkit.training.data.folder.read import check_given, check_mask
from genkit.training.data.folder.rules import FolderRule
from genkit.training.data.folder.told import listed

#: Stands in a caption for the trigger word.
TRIGGER = "[trigger]"


@dataclass(frozen=True, eq=False)
class FolderData:
    """What the folders of a run come to.

    Args:
        folders: as they were read.
        cuts: samples to train on.
        times: how often each comes in an epoch.
        held_out: samples that are never trained on.
        contents: digests of the files.
        told: what a user should know about folders and files, one line each; see also :attr:`Cut.told`.
    """

    folders: tuple[Folder, ...]
    cuts: tuple[Cut, ...]
    times: tuple[float, ...]
    held_out: tuple[Cut, ...]
    contents: Contents
    told: tuple[str, ...] = ()

    @staticmethod
    def read(
        rules: Sequence[FolderRule],
        held_out: float = 0,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> FolderData:
        """Read folders: every file's content, sizes and time stamps, no more pixels than needed for that.

        Args:
            rules: the folders and how their files become samples.
            held_out: share (below 1) or number of files that are never trained on. They are chosen by their content,
                so they stay the same when others come, go or are renamed.
            progress: called with (done, all, file) before each file and at the end.

        Raises:
            UsageError: a folder or files that cannot be used; all of them are counted, the first ones named.
        """
        folders = tuple(read_folder(rule.path, rule.wanted) for rule in rules)
        contents = Contents()
        cuts: list[tuple[Cut, float]] = []
        wrong: list[str] = []
        told: dict[str, None] = {}
        count, total = 0, sum(len(folder.items) for folder in folders)
        for rule, folder in zip(rules, folders, strict=True):
            told |= dict.fromkeys((*rule.told, *folder.told))
            for found in folder.items:
                if progress is not None:
                    progress(count, total, place(found.path.name))
                count += 1
                try:
                    own = _cuts(rule, found, contents, told)
                    cuts += [(cut, rule.times) for cut in own]
                except (ArtifactError, UsageError) as error:
                    wrong.append(str(error))
        if progress is not None:
            progress(total, total, "")
        if wrong:
            raise UsageError(f"data: {len(wrong)} of {counted(total, 'file')} cannot be used: {listed(wrong, '; ')}")
        out = _held_out(cuts, contents, held_out)
        kept = [(cut, times) for cut, times in cuts if contents.digest(cut.item.path) not in out]
        return FolderData(
            folders,
            tuple(cut for cut, _ in kept),
            tuple(times for _, times in kept),
            tuple(dict.fromkeys(cut for cut, _ in cuts if contents.digest(cut.item.path) in out)),
            contents,
            (*told, *_twice(cuts, contents)),
        )

    def batches(self, size: int, seed: int = 0, processes: int = 1) -> Batches:
        """The batches of a run, see :class:`Batches`."""
        return Batches(self.cuts, size, seed, processes, self.times)

    @property
    def every(self) -> list[Cut]:
        """Every sample once, those held out at the end."""
        return list(dict.fromkeys((*self.cuts, *self.held_out)))

    @property
    def captions(self) -> list[str]:
        """Every caption once, and the empty one where captions are dropped."""
        empty = [""] if any(cut.item.dropout for cut in self.cuts) else []
        return list(dict.fromkeys((*(cut.item.caption for cut in self.every), *empty)))

    def digest(self) -> str:
        """SHA-256 of what is trained on: contents, captions, cuts, how often and in which order. Names do not count."""
        told = [
            [
                *(self.contents.digest(path) for path in cut.item.files),
                cut.item.caption,
                cut.item.dropout,
                cut.item.unmasked,
                cut.shelf,
                list(cut.frames),
                cut.sound,
                times,
            ]
            for cut, times in zip(self.cuts, self.times, strict=True)
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _cuts(rule: FolderRule, found: Item, contents: Contents, told: dict[str, None]) -> list[Cut]:
    """The samples of a file; what a user should know is added to ``told``."""
    for path in found.files:
        contents.digest(path)
    for role, path in found.given:
        if rule.takes is not None and role not in rule.takes:
            raise UsageError(
                f"{place(found.path)} goes with {place(path)} as {role}, of which the model is told nothing"
            )
    item = replace(
        found, caption=_called(found.caption, rule.trigger_word, found.path), dropout=rule.caption_dropout,
        unmasked=rule.unmasked_weight,
    )  # fmt: skip
    # Of several sizes and lengths a small or short file may fill the same one.
    cuts = list(dict.fromkeys(cut for each in rule.cuts for cut in each.cuts(item)))
    for cut in cuts:
        if item.mask is not None:
            check_mask(cut)
        told |= dict.fromkeys(check_given(cut))
    return cuts


def _twice(cuts: Sequence[tuple[Cut, float]], contents: Contents) -> list[str]:
    """Files of the same content."""
    files: dict[str, list[str]] = {}
    for path in dict.fromkeys(cut.item.path for cut, _ in cuts):
        files.setdefault(contents.digest(path), []).append(place(path))
    found = [" and ".join(names) for names in files.values() if len(names) > 1]
    return [f"{counted(len(found), 'file is', 'files are')} there more than once: {listed(found)}"] if found else []


def _held_out(cuts: Sequence[tuple[Cut, float]], contents: Contents, wanted: float | int) -> set[str]:
    """Digests of the contents that are held out."""
    if isinstance(wanted, bool) or wanted < 0 or (wanted >= 1 and wanted != int(wanted)):
        raise UsageError(f"held_out: got {wanted}, allowed: a share below 1, or a number of files")
    digests = sorted({contents.digest(cut.item.path) for cut, _ in cuts}, key=_lot)
    if wanted >= len(digests):
        raise UsageError(
            f"held_out: got {wanted}, allowed: fewer than the {counted(len(digests), 'different file')} that there are"
        )
    if wanted >= 1:
        return set(digests[: int(wanted)])
    chosen = {digest for digest in digests if _lot(digest) < wanted}
    # A share of few files may come to none, or to all.
    few = set(digests[:1]) if wanted > 0 else set()
    return (chosen or few) if len(chosen) < len(digests) else few


def _called(caption: str, trigger: str | None, path: Path) -> str:
    """A caption with the trigger word."""
    if TRIGGER in caption:
        if trigger is None:
            raise UsageError(f"{place(path)}: its caption says {TRIGGER}; allowed: with a trigger_word")
        return caption.replace(TRIGGER, trigger)
    if trigger is None or re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption):
        return caption
    return f"{trigger} {caption}".strip()


def _lot(digest: str) -> float:
    """A number in 0..1 that a content draws for itself."""
    return int(hashlib.sha256(f"held out {digest}".encode()).hexdigest()[:13], 16) / 16**13
