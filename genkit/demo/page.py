"""The page: tabs side by side, what the visitor made below them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from genkit.demo.blocks import Blocks
from genkit.demo.engine.desk import Desk
from genkit.demo.engine.messages import told
from genkit.demo.engine.stored import stored_settings
from genkit.demo.engine.visitors import Entry, Visitor, Visitors
from genkit.demo.examples import draw, draw_clip
from genkit.demo.options import Offer
from genkit.demo.tabs import restore
from genkit.demo.tabs.base import Tab
from genkit.demo.tabs.compare import Compare
from genkit.demo.tabs.consistent import Consistent
from genkit.demo.tabs.edit import Edit
from genkit.demo.tabs.generate import Generate
from genkit.demo.tabs.inpaint import Inpaint
from genkit.demo.tabs.live import Live
from genkit.demo.tabs.stage import QUEUED
from genkit.demo.tabs.style import Style
from genkit.demo.tabs.train import Train
from genkit.errors import GenkitError
from genkit.pipelines.record import read_record

#: In their order on the page.
TABS: tuple[type[Tab], ...] = (Generate, Live, Edit, Inpaint, Style, Consistent, Compare, Train)
TITLE = "genkit"
#: Folder, in the server's, where Gradio puts uploads and what it shows.
UPLOADS = "gradio"
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
        self.uploads = (offer.root / UPLOADS,)
        self.examples = draw(offer.root / UPLOADS / "examples")
        self.clip = draw_clip(offer.root / UPLOADS / "examples")
        self.blocks = Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600))
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
            self._enter, browser, [browser, self.visitor, self.gallery, strip, *self.lora_fields()],
            api_visibility="private", show_progress="hidden", queue=False,
        )  # fmt: skip
        for tab in self.tabs:
            enter.then(
                tab.resume, self.visitor, [self.gallery, *tab.outputs.values(), *self.lora_fields(), tab.halt],
                api_visibility="private", show_progress="hidden", concurrency_limit=None,
            )  # fmt: skip

    def _enter(self, token: Any) -> tuple[Any, ...]:
        """A page is opened: the visitor that the browser remembers, or a new one."""
        visitor = self.visitors.of(token)
        job = visitor.job
        selected = gr.update(selected=job.tab) if job is not None and job.tab else gr.skip()
        return visitor.token, visitor.token, self.gallery_of(visitor), selected, *self.lora_choices(visitor).values()

    def visitor_of(self, token: str | None, request: gr.Request) -> Visitor:
        """Who asks: the name that the page knows, or else the session of a program. Those who come through the server
        for language models share one session, and are strangers every time."""
        shared = request.headers.get("x-gradio-user") == "mcp"
        return self.visitors.of(token or (None if shared else self.visitors.name_of(request.session_hash)))

    def lora_fields(self) -> list[Any]:
        """The choosers of LoRAs of the tabs that are built."""
        return [tab.form["lora"] for tab in self.tabs if "lora" in tab.form]

    def lora_choices(self, visitor: Visitor) -> dict[Any, Any]:
        """Every chooser with the server's LoRAs and the visitor's own."""
        names = [*self.offer.loras, *visitor.loras]
        return {field: gr.update(choices=names) for field in self.lora_fields()}

    def gallery_of(self, visitor: Visitor) -> Any:
        """The visitor's results, the newest first."""
        return gr.update(value=[(str(each.path), each.caption) for each in reversed(visitor.entries)])

    def _shelf(self) -> None:
        chosen = gr.State(None)
        with gr.Column(elem_classes="shelf"):
            with gr.Row(equal_height=True):
                gr.HTML(
                    "<h2>Your results</h2><p>Kept for an hour and seen by nobody else. Every file you download holds "
                    "its settings.</p>"
                )
                opened = gr.UploadButton(
                    "Settings from a file", file_types=[".png", ".mp4", ".gif", ".webp", ".json"], size="sm",
                    elem_classes="slim", scale=0, min_width=170,
                )  # fmt: skip
            self.gallery.render()
            with gr.Row(elem_classes="tools", visible=False) as tools:
                again = gr.Button("Use its settings", size="sm", elem_classes="slim", elem_id="shelf-settings")
                edit = gr.Button("Edit it", size="sm", elem_classes="slim", elem_id="shelf-edit")
                inpaint = gr.Button("Inpaint it", size="sm", elem_classes="slim", elem_id="shelf-inpaint")
                file = gr.DownloadButton("Download", size="sm", elem_classes="slim", elem_id="shelf-file")
        forms = [component for tab in self.tabs for component in tab.form.values()]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
        self.gallery.select(self._chosen, self.visitor, [chosen, tools, edit, inpaint, file], **private)
        told = private | QUEUED
        again.click(self._settings_of, [self.visitor, chosen], [self.strip, *forms], **told)
        edit.click(self._taken("edit"), [self.visitor, chosen], [self.strip, *forms], **told)
        inpaint.click(self._taken("inpaint"), [self.visitor, chosen], [self.strip, *forms], **told)
        opened.upload(self._opened, [self.visitor, opened], [self.strip, *forms], **told)

    def _chosen(self, token: str | None, event: gr.SelectData) -> list[Any]:
        """A result was chosen: what can be done with it."""
        entries = list(reversed(self.visitors.of(token).entries))
        if not isinstance(event.index, int) or not 0 <= event.index < len(entries):
            return [None, gr.update(visible=False), gr.skip(), gr.skip(), gr.skip()]
        path = entries[event.index].path
        still = gr.update(visible=path.suffix == ".png")
        return [path.name, gr.update(visible=True), gr.update(visible=True), still, gr.update(value=str(path))]

    def _entry(self, token: str | None, name: Any) -> Entry:
        """The chosen result of a visitor; nobody else's is found."""
        for each in self.visitors.of(token).entries:
            if each.path.name == name:
                return each
        raise gr.Error("This result is gone.", title="Expired", print_exception=False)

    def _tab(self, name: str) -> Tab:
        return next((each for each in self.tabs if each.name == name), self.tabs[0])

    def _settings_of(self, token: str | None, name: Any) -> dict[Any, Any]:
        return self._restored(self._entry(token, name), self.visitors.of(token))

    def _taken(self, tab: str) -> Callable[[str | None, Any], dict[Any, Any]]:
        """Open a tab with a chosen result as its input."""

        def taken(token: str | None, name: Any) -> dict[Any, Any]:
            entry, to = self._entry(token, name), self._tab(tab)
            return {self.strip: gr.update(selected=tab), **to.take_in(entry.path, entry.settings)}

        return taken

    def _restored(self, entry: Entry, visitor: Visitor) -> dict[Any, Any]:
        """The settings of a result in the form that makes such; what it has no place for is told."""
        tab, missing = self._tab(entry.command), 0
        record = read_record(entry.path)
        filled = tab.fill(entry.settings)
        if "lora" in tab.form:
            filled |= restore.loras(record, {**self.offer.loras, **visitor.loras})
            missing = len(entry.settings.get("lora") or ()) - len(filled["lora"])
        changes = {tab.form[name]: value for name, value in filled.items()}
        gr.Info(f"The settings of this result are in {tab.title} again.", duration=4)
        left = [*tab.not_filled(entry.settings), *(["LoRA"] if missing else [])]
        if left:
            gr.Warning(f"Not offered in this form, so left out: {', '.join(left)}.", duration=10)
        return {self.strip: gr.update(selected=tab.name), **changes}

    def _opened(self, token: str | None, path: str | None) -> dict[Any, Any]:
        """A file was given whose settings are wanted."""
        found = Path(str(path))
        try:
            command, settings = stored_settings(found)
            return self._restored(Entry(found, "", command, settings), self.visitors.of(token))
        except GenkitError as error:
            message = told(error).replace(str(path), Path(str(path)).name)
            raise gr.Error(message, title="No settings", print_exception=False) from None
