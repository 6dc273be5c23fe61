"""The page: tabs side by side, what the visitor made below them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from genkit.demo.engine.desk import Desk
from genkit.demo.engine.messages import told
from genkit.demo.engine.pictures import UPLOAD
from genkit.demo.engine.visitors import Entry, Visitor, Visitors
from genkit.demo.options import Offer
from genkit.demo.tabs.base import Tab
from genkit.demo.tabs.compare import Compare
from genkit.demo.tabs.generate import Generate
from genkit.errors import GenkitError, UsageError
from genkit.media.files import read_settings

#: In their order on the page.
TABS: tuple[type[Tab], ...] = (Generate, Compare)
TITLE = "genkit"
WAITING = 24


class Page:
    """The whole page, and what its tabs share.

    Args:
        offer: what visitors may choose.
        visitors: who they are.
        desk: where runs are made.
    """

    def __init__(self, offer: Offer, visitors: Visitors, desk: Desk):
        self.offer, self.visitors, self.desk = offer, visitors, desk
        self.blocks = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600))
        with self.blocks:
            self._build()
        self.blocks.queue(max_size=WAITING, default_concurrency_limit=16)

    def _build(self) -> None:
        browser = gr.BrowserState("", storage_key="genkit-visitor")
        self.visitor = gr.State("")
        gr.HTML(
            '<header class="masthead"><h1>gen<span>kit</span></h1>'
            "<p>Attention you can choose, in pictures, videos and sound</p></header>"
        )
        self.gallery = gr.Gallery(
            label="Results", show_label=False, columns=6, height="auto", format="png", object_fit="contain",
            interactive=False, render=False, allow_preview=False, fit_columns=False, buttons=[],
            elem_id="shelf-gallery",
        )  # fmt: skip
        self.tabs = []
        with gr.Tabs() as strip:
            for kind in TABS:
                tab = kind(self)
                with gr.Tab(tab.title, id=tab.name):
                    tab.build()
                self.tabs.append(tab)
        self.strip = strip
        self._shelf()
        enter = self.blocks.load(
            self._enter, browser, [browser, self.visitor, self.gallery, strip], api_visibility="private",
            show_progress="hidden",
        )  # fmt: skip
        for tab in self.tabs:
            enter.then(
                tab.resume, self.visitor, [self.gallery, *tab.outputs.values()], api_visibility="private",
                show_progress="hidden", concurrency_limit=None,
            )  # fmt: skip

    def _enter(self, token: Any) -> tuple[Any, ...]:
        """A page is opened: the visitor that the browser remembers, or a new one."""
        visitor = self.visitors.of(token)
        job = visitor.job
        selected = gr.update(selected=job.tab) if job is not None and job.tab else gr.skip()
        return visitor.token, visitor.token, self.gallery_of(visitor), selected

    def gallery_of(self, visitor: Visitor) -> Any:
        """The visitor's results, the newest first."""
        return gr.update(value=[(str(each.path), each.caption) for each in reversed(visitor.entries)])

    def _shelf(self) -> None:
        with gr.Column(elem_classes="shelf"):
            with gr.Row(equal_height=True):
                gr.HTML(
                    "<h2>Your results</h2><p>Kept for an hour and seen by nobody else. Choose one to use its settings "
                    "again; every file you download holds them too.</p>"
                )
                opened = gr.UploadButton(
                    "Settings from a file", file_types=[".png", ".mp4", ".gif", ".webp", ".json"], size="sm",
                    elem_classes="slim", scale=0, min_width=170,
                )  # fmt: skip
            self.gallery.render()
        forms = [component for tab in self.tabs for component in tab.form.values()]
        chosen = {"api_visibility": "private", "show_progress": "hidden"}
        self.gallery.select(self._chosen, self.visitor, [self.strip, *forms], **chosen)
        opened.upload(self._opened, opened, [self.strip, *forms], **chosen)

    def _chosen(self, token: str | None, event: gr.SelectData) -> dict[Any, Any]:
        """A result was chosen: its settings go back into the form of its tab."""
        visitor = self.visitors.of(token)
        entries = list(reversed(visitor.entries))
        if not isinstance(event.index, int) or not 0 <= event.index < len(entries):
            return {self.strip: gr.skip()}
        return self._restored(entries[event.index])

    def _restored(self, entry: Entry) -> dict[Any, Any]:
        tab = next((each for each in self.tabs if each.name == entry.command), self.tabs[0])
        changes = {tab.form[name]: value for name, value in tab.fill(entry.settings).items()}
        gr.Info(f"The settings of this result are in {tab.title} again.", duration=4)
        return {self.strip: gr.update(selected=tab.name), **changes}

    def _opened(self, path: str | None) -> dict[Any, Any]:
        """A file was given whose settings are wanted."""
        try:
            found = Path(str(path))
            if path is None or not found.is_file() or found.stat().st_size > UPLOAD:
                raise UsageError(f"give a file that genkit made, of at most {UPLOAD >> 20} MB")
            record = read_settings(found)
            settings = record["settings"]
            if not isinstance(settings, dict):
                raise UsageError("the settings in this file are none that genkit wrote")
            return self._restored(Entry(found, "", str(record.get("command") or "generate"), settings))
        except GenkitError as error:
            message = told(error).replace(str(path), Path(str(path)).name)
            raise gr.Error(message, title="No settings", print_exception=False) from None
