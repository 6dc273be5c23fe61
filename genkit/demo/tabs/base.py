"""What every tab shares: a form, a button that runs it, a button that stops it, and the place of the result."""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from genkit.demo.engine.job import DONE, FAILED, STOPPED, Job, State
from genkit.demo.engine.messages import ORIGIN, label, told
from genkit.demo.engine.visitors import Visitor
from genkit.demo.options import attention_settings, defaults_of
from genkit.demo.tabs import restore, show
from genkit.demo.tabs.fields import MOST, new_seed
from genkit.demo.tabs.sent import received
from genkit.demo.tabs.stage import Stage, TakeIn
from genkit.errors import GenkitError, UsageError, explain
from genkit.pipelines.request import Settings

if TYPE_CHECKING:
    from genkit.demo.page import Page

#: What only the page itself calls, at once.
#: Seconds that a page waits for the end of a run that it stopped: a step of a large model takes some.
_LATEST = 20.0
_QUIET: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
#: All runs take turns on the device.
DEVICE = "device"


class Tab(ABC):
    """One tab. A subclass builds its form in :meth:`build`, and turns its values into settings in :meth:`settings`.

    Args:
        page: what all tabs share.
    """

    name: str
    title: str
    lead: str
    #: The settings that its runs have; a tab that restores none has none.
    kind: type[Settings] | None = None
    #: Inputs, which are given anew, and settings that controls of other names hold.
    files: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    #: What runs have where a setting without a control is left open.
    usual: Mapping[str, Any] = {}
    #: How a run begins.
    hint = "The green button begins, or Enter in the prompt."
    #: Seconds between two changes of the page during a run.
    refresh = 0.2

    def __init__(self, page: Page):
        self.page = page
        self.form: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.stage: Stage | None = None
        self.halt: gr.Button | None = None

    @abstractmethod
    def build(self) -> None:
        """Make the controls (:attr:`form`) and the places of results (:attr:`outputs`), and wire them."""

    @abstractmethod
    def settings(self, given: Mapping[str, Any], visitor: Visitor) -> list[Settings]:
        """The settings of the runs that a form asks for.

        Raises:
            GenkitError: what is wrong with the form.
        """

    def shown(self, state: State, job: Job) -> dict[str, Any]:
        """Changes of :attr:`outputs` for a state, by name."""
        stage = {} if self.stage is None else self.stage.shown(state, job)
        return {"status": show.status(state), **stage}

    def fill(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the whole form for stored settings, by name, without inputs and LoRAs: what is not stored is as
        when nothing is said, so that nothing stays of what was in the form before."""
        others = (*self.files, "lora", "lora_strength", "keep_seed", "variants")
        found = {
            name: restore.shown(each, settings.get(name)) for name, each in self.form.items() if name not in others
        }
        model = self.page.offer.offered(settings.get("model"))
        if model is None:
            del found["model"]
        else:
            found["model"] = model
        if "attention" in self.form:
            found |= {"attention": self.form["attention"].value, **restore.attention(settings, model or "")}
        if "keep_seed" in self.form:
            found["keep_seed"] = settings.get("seed") is not None
        return found | ({"variants": 1} if "variants" in self.form else {})

    def not_filled(self, settings: Mapping[str, Any]) -> list[str]:
        """Stored settings that :meth:`fill` has no place for, as the page calls them."""
        if self.kind is None:
            return []
        offer, model = self.page.offer, self.page.offer.offered(settings.get("model")) or ""
        usual = {**self.kind.defaults(), **self.usual, **(defaults_of(model) if model else {})}
        found = restore.left_out(usual, settings, (*self.form, *self.held, *self.files))
        found += ["model"] if settings.get("model") and offer.offered(settings["model"]) is None else []
        chosen = settings.get("attention") or settings.get("recipe")
        found += ["attention"] if chosen and not restore.attention(settings, model) else []
        return [label(name) for name in found]

    def take_in(self, path: Path, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Changes of the form that make a result of a visitor its input; a tab without inputs changes nothing."""
        return {}

    # What subclasses use

    def begin_row(self, button: str) -> tuple[gr.Button, gr.Button]:
        """The buttons that run and stop."""
        with gr.Row(elem_classes="actions"):
            go = gr.Button(button, variant="primary", elem_classes="go", elem_id=f"{self.name}-go")
            self.halt = gr.Button(
                "Stop", elem_classes="halt", elem_id=f"{self.name}-stop", min_width=84, interactive=False
            )
        return go, self.halt

    def status(self) -> None:
        """The box that tells what happens."""
        self.outputs["status"] = gr.HTML(show.idle(self.hint), elem_id=f"{self.name}-status", min_height=48)

    def place(self, labels: tuple[str, str] | None = None, take_in: TakeIn | None = None) -> None:
        """The box that tells what happens, and the place of results; see :class:`Stage`."""
        self.status()
        self.stage = Stage(self, labels, take_in)
        self.outputs |= self.stage.build()

    def wire(self, go: gr.Button, halt: gr.Button, *more: Any, cut: bool = True) -> None:
        """Let a button, and Enter in ``more``, run the form, and the other button, which can be pressed as long as
        something runs or waits, stop it.

        Args:
            go, halt: the buttons.
            more: further events that run the form, such as ``prompt.submit``.
            cut: whether a run that is stopped makes nothing; else the page stays with it for what was made so far.
        """
        page = self.page
        if self.stage is not None:
            self.stage.wire()
        results = [each for name, each in self.outputs.items() if name != "status"]  # programs get the result first
        outputs = [*results, self.outputs["status"], page.gallery, *page.lora_fields()]
        if "keep_seed" in self.form:
            outputs.append(self.form["seed"])
        gr.on([go.click, *more], lambda: gr.update(interactive=True), None, halt, **_QUIET)
        run = gr.on(
            [go.click, *more], self._run(), [page.visitor, *self.form.values()], outputs, api_name=self.name,
            api_description=self.lead, concurrency_id=DEVICE, concurrency_limit=1, trigger_mode="once",
            show_progress="full", show_progress_on=[self.outputs["status"]], scroll_to_output=True, preprocess=False,
        )  # fmt: skip
        run.then(lambda: gr.update(interactive=False), None, halt, **_QUIET)
        told = [self.outputs["status"], halt]
        if cut:
            halted = halt.click(self._stop, page.visitor, told, cancels=[run], **_QUIET)
            halted.then(self._stopped, page.visitor, self.outputs["status"], **_QUIET)
        else:
            halt.click(self._end, page.visitor, told, **_QUIET)

    def _stop(self, token: str | None) -> tuple[str, Any]:
        job, still = self.page.visitors.of(token).job, gr.update(interactive=False)
        if job is None or job.state.ended:
            return show.idle(self.hint), still
        job.stop()
        return show.status(State(phase=STOPPED)), still

    def _stopped(self, token: str | None) -> Any:
        """The same again when the run has ended: a step that was on its way when it was cut is shown after the word."""
        job = self.page.visitors.of(token).job
        latest = time.monotonic() + _LATEST
        if job is None:
            return gr.skip()
        for _ in job.watch(every=1.0):
            if time.monotonic() > latest:
                break
        same = job is self.page.visitors.of(token).job
        return show.status(job.state) if same and job.state.phase == STOPPED else gr.skip()

    def _end(self, token: str | None) -> tuple[Any, Any]:
        """Ask for the end of a run whose result so far is wanted."""
        job = self.page.visitors.of(token).job
        if job is not None:
            job.stop()
        return gr.skip(), gr.update(interactive=False)

    def _run(self) -> Callable[..., Iterator[dict[Any, Any]]]:
        """The function behind the button; its parameters are named as the controls, for programs that call it."""

        def run(request: gr.Request, token: str | None, *values: Any) -> Iterator[dict[Any, Any]]:
            sent = zip(self.form.items(), values, strict=True)
            try:
                given = {name: received(component, value, request) for (name, component), value in sent}
            except GenkitError as error:
                raise refusal(error) from None
            visitor = self.page.visitor_of(token, request)
            yield self._drawn(given) or {self.outputs["status"]: gr.skip()}
            try:
                wanted = self.settings(given, visitor)
            except GenkitError as error:
                yield self._placed({"status": show.status(State(FAILED, message=told(error)))})
                raise refusal(error) from None
            job = self.start(visitor, wanted)
            try:
                yield from self.follow(job, visitor)
            finally:
                job.left()
            if job.state.phase == FAILED:
                raise gr.Error(job.state.message, title="Not made", print_exception=False, duration=12)

        usual = {"token": None, **{name: getattr(each, "value", None) for name, each in self.form.items()}}
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind, default=value) for name, value in usual.items()]
        parameters.insert(0, inspect.Parameter("request", kind))
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {"request": gr.Request}
        run.__doc__, run.__name__ = self.lead, self.name  # language models read both
        return run

    def start(self, visitor: Visitor, wanted: list[Any]) -> Job:
        """Begin to make what :meth:`settings` gave."""
        return self.page.desk.start(visitor, self.name, wanted)

    def _drawn(self, given: dict[str, Any]) -> dict[Any, Any]:
        """Draw a seed unless it is kept; shows it on the page. What was sent is not shown: nobody checked it yet."""
        if "keep_seed" not in given or (given.pop("keep_seed") and given["seed"] is not None):
            return {}
        given["seed"] = new_seed()
        return {self.form["seed"]: given["seed"]}

    def follow(self, job: Job, visitor: Visitor) -> Iterator[dict[Any, Any]]:
        """Changes of the page while a job goes on, and at its end."""
        last = 0.0
        for state in job.watch():
            visitor.touched = max(visitor.touched, time.monotonic())
            wait = self.refresh - (time.monotonic() - last)
            if wait > 0 and not state.ended:
                time.sleep(wait)
                state = job.state
            last = time.monotonic()
            if self.stage is not None:
                self.stage.keep(state, job, visitor)
            changes = self._placed(self.shown(state, job))
            if state.phase == DONE:
                changes |= self.at_end(visitor)
            yield changes
            if state.ended:
                return

    def at_end(self, visitor: Visitor) -> dict[Any, Any]:
        """What of the page changes besides when a job is done."""
        return {self.page.gallery: self.page.gallery_of(visitor)}

    def _placed(self, changes: Mapping[str, Any]) -> dict[Any, Any]:
        return {self.outputs[name]: value for name, value in changes.items()}

    def resume(self, token: str | None) -> Iterator[dict[Any, Any]]:
        """After a reload: what the visitor's job in this tab is at, until it ends."""
        visitor = self.page.visitors.of(token)
        if visitor.job is not None and visitor.job.tab == self.name:
            yield {self.halt: gr.update(interactive=not visitor.job.state.ended)}
            try:
                yield from self.follow(visitor.job, visitor)
            finally:
                visitor.job.left()
            yield {self.halt: gr.update(interactive=False)}
        else:
            yield {self.outputs["status"]: gr.skip()}

    def common(self, given: Mapping[str, Any], visitor: Visitor) -> dict[str, Any]:
        """The settings that tabs share: model, device, LoRAs, attention, and whatever is named as a setting."""
        offer = self.page.offer
        found: dict[str, Any] = {"model": offer.check_model(given["model"]), "device": offer.device}
        if offer.dtype != "auto":
            found["dtype"] = offer.dtype
        if "attention" in given:
            found |= attention_settings(
                given["attention"], given.get("attention_args"), given.get("schedule"), found["model"]
            )
        if given.get("lora"):
            found["lora"] = self._loras(given["lora"], given.get("lora_strength"), visitor)
        return found

    def several(self, kind: type[Settings], values: Mapping[str, Any], given: Mapping[str, Any]) -> list[Settings]:
        """Settings of as many variants as a form asks for, with seeds in a row.

        Raises:
            GenkitError: values that the settings do not take, or too many variants.
        """
        count = given["variants"]
        if isinstance(count, (int, float)) and not 1 <= count <= MOST:
            raise UsageError(explain("Variants", count, f"1 to {MOST}"))
        first: Any = kind.from_mappings((ORIGIN, {**values, "num_videos": count}))
        seed = first.seed or 0
        return [first.replace(seed=seed + index, num_videos=1) for index in range(first.num_videos)]

    def _loras(self, names: Any, strength: Any, visitor: Visitor) -> tuple[str, ...]:
        known = {**self.page.offer.loras, **visitor.loras}
        found = []
        for name in names if isinstance(names, list) else [names]:
            if not isinstance(name, str) or name not in known:
                raise UsageError(explain("LoRA", name, list(known), "train one in the last tab"))
            found.append(f"{known[name]}@{1 if strength is None else strength}")
        return tuple(found)


def text_or_none(value: Any) -> Any:
    """An empty box as nothing."""
    return None if isinstance(value, str) and not value.strip() else value


def refusal(error: GenkitError) -> gr.Error:
    """An error as a message on the page, without a traceback in the log."""
    return gr.Error(told(error), title="Please check", print_exception=False, duration=12)
