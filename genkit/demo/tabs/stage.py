"""The place of results: the chosen one large, beside what it was made from; all of a run side by side below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from genkit.demo.engine.job import DONE, Job, State
from genkit.demo.engine.pictures import CLIPS
from genkit.demo.engine.visitors import Entry, Visitor
from genkit.demo.tabs import show

if TYPE_CHECKING:
    from genkit.demo.tabs.base import Tab

#: Events whose refusals are told: outside of the queue they would be errors of the browser's console, too.
QUEUED: dict[str, Any] = {"queue": True, "concurrency_limit": None}
#: What a tab's form becomes when a result is taken as its input.
TakeIn = Callable[[Path, Mapping[str, Any]], dict[Any, Any]]


class Stage:
    """The right side of a tab.

    Args:
        tab: whose it is.
        labels: of input and result where they are shown with a slider (of clips as two players); None shows the
            result alone.
        take_in: changes of the form that make a result its input; None where it takes none.
    """

    def __init__(self, tab: Tab, labels: tuple[str, str] | None = None, take_in: TakeIn | None = None):
        self.tab, self.labels, self.take_in = tab, labels, take_in
        self.parts: dict[str, Any] = {}

    def build(self) -> dict[str, Any]:
        """Make the controls; what programs get comes first."""
        name, parts = self.tab.name, self.parts
        if self.labels is not None:
            self._build_pair(name, *self.labels)
        else:
            self._build_single(name)
        parts["facts"] = gr.HTML("", elem_id=f"{name}-facts")
        with gr.Row(elem_classes="tools"):
            parts["file"] = gr.DownloadButton(
                "Download with settings inside", visible=False, elem_id=f"{name}-file", size="md", elem_classes="slim"
            )
            if self.take_in is not None:
                parts["reuse"] = gr.Button(
                    "Use as input", visible=False, elem_id=f"{name}-reuse", size="md", elem_classes="slim"
                )
        parts["choices"] = gr.Gallery(
            label="All of this run; choose one", columns=4, height="auto", format="png", object_fit="contain",
            interactive=False, visible=False, allow_preview=False, buttons=[], elem_id=f"{name}-choices",
            elem_classes="choices",
        )  # fmt: skip
        return parts

    def _build_pair(self, name: str, first: str, second: str) -> None:
        self.parts["slider"] = gr.ImageSlider(
            label=f"{first}  |  {second.lower()}", format="png", type="filepath", interactive=False, max_height=460,
            elem_classes="stage", elem_id=f"{name}-slider", buttons=["fullscreen"],
        )  # fmt: skip
        with gr.Row(elem_classes="pair", visible=False) as self.parts["pair"]:
            for side, title in (("before", first), ("after", second)):
                self.parts[side] = gr.Video(
                    label=title, interactive=False, loop=True, autoplay=True, buttons=[], elem_id=f"{name}-{side}"
                )

    def _build_single(self, name: str) -> None:
        self.parts["image"] = gr.Image(
            label="Result", format="png", interactive=False, height=460, elem_classes="stage", type="filepath",
            elem_id=f"{name}-image", buttons=["fullscreen"],
            placeholder="### Nothing made yet\nYour result appears here, and every step before it.",
        )  # fmt: skip
        self.parts["video"] = gr.Video(
            label="Result", interactive=False, height=460, visible=False, loop=True, autoplay=True,
            elem_classes="stage", elem_id=f"{name}-video", buttons=[],
        )  # fmt: skip

    def wire(self) -> None:
        """Let the gallery choose what is large, and the button take it as input."""
        visitor, parts = self.tab.page.visitor, self.parts
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        changed = [each for name, each in parts.items() if name not in ("choices", "reuse")]
        parts["choices"].select(self._chosen, visitor, changed, **quiet)
        if self.take_in is not None:
            parts["reuse"].click(self._reused, visitor, list(self.tab.form.values()), **quiet | QUEUED)

    def _chosen(self, token: str | None, event: gr.SelectData) -> dict[Any, Any]:
        picks = self.tab.page.visitors.of(token).picks.get(self.tab.name)
        if picks is None or not isinstance(event.index, int) or not 0 <= event.index < len(picks["made"]):
            return {self.parts["facts"]: gr.skip()}
        picks["at"] = event.index
        return {self.parts[name]: value for name, value in self._large(picks).items()}

    def _reused(self, token: str | None) -> dict[Any, Any]:
        visitor = self.tab.page.visitors.of(token)
        picks = visitor.picks.get(self.tab.name)
        wanted = None if picks is None else Path(picks["made"][picks["at"]][0])
        entry: Entry | None = next((each for each in visitor.entries if each.path == wanted), None)
        if entry is None or self.take_in is None:
            raise gr.Error("This result is gone.", title="Expired", print_exception=False)
        gr.Info("This result is the input now.", duration=3)
        return self.take_in(entry.path, entry.settings)

    def _large(self, picks: dict[str, Any]) -> dict[str, Any]:
        """Changes that show the chosen result."""
        path, facts = picks["made"][picks["at"]]
        changes = self._shown(picks["before"], path)
        changes |= {"facts": facts, "file": gr.update(visible=True, value=path)}
        return changes

    def _shown(self, before: str | None, path: str) -> dict[str, Any]:
        moving = path.endswith(".mp4")
        if self.labels is None:
            return {
                "image": gr.update(visible=not moving, value=None if moving else path),
                "video": gr.update(visible=moving, value=path if moving else None),
            }
        return {
            "slider": gr.update(visible=not moving, value=None if moving else (before, path)),
            "pair": gr.update(visible=moving),
            "before": before if moving else None,
            "after": path if moving else None,
        }

    def keep(self, state: State, job: Job, visitor: Visitor) -> None:
        """Remember what a run has made, so that the visitor can choose of it."""
        if state.made:
            visitor.picks[self.tab.name] = self._picks(state, job)

    def _picks(self, state: State, job: Job) -> dict[str, Any]:
        """Results with their facts; at the end the first one is shown, meanwhile the newest: somebody watches."""
        made = [(str(each.path), show.facts(each)) for each in state.made]
        return {"before": _before(job), "made": made, "at": 0 if state.phase == DONE else len(made) - 1}

    def shown(self, state: State, job: Job) -> dict[str, Any]:
        """Changes of the outputs for a state of a job, by name."""
        if state.made and (state.phase == DONE or state.preview is None):
            picks, several = self._picks(state, job), state.runs > 1
            changes = self._large(picks)
            items = [(path, title) for (path, _), title in zip(picks["made"], show.titles(state.made), strict=True)]
            changes["choices"] = gr.update(visible=several, value=items if several else None)
            if self.take_in is not None:
                changes["reuse"] = gr.update(visible=True)
            return changes
        return {} if state.preview is None else self._preview(_before(job), state.preview)

    def _preview(self, before: str | None, preview: Any) -> dict[str, Any]:
        if self.labels is None:
            return {"image": gr.update(visible=True, value=preview), "video": gr.update(visible=False)}
        still = before is not None and not before.lower().endswith(CLIPS)
        return {
            "slider": gr.update(visible=True, value=(before if still else preview, preview)),
            "pair": gr.update(visible=False),
        }


def _before(job: Job) -> str | None:
    """The file that a job works on."""
    return getattr(job.wanted[0], "image", None) if job.wanted else None
