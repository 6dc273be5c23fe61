"""Starting the demo: what is offered, where it listens, and what keeps it safe."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.demo.engine.messages import FOLDER
from genkit.errors import UnsupportedError, UsageError, explain

LOCAL = "127.0.0.1"
PORT = 7860


@dataclass(frozen=True)
class Address:
    """Where the server listens.

    Args:
        host: 127.0.0.1 is reached from this machine alone.
        port: 0 takes a free one.
        auth: name and password that are asked for, or None.
    """

    host: str = LOCAL
    port: int = PORT
    auth: tuple[str, str] | None = None

    @classmethod
    def of(cls, host: str, port: int, auth: str | None) -> Address:
        """From texts; ``auth`` is ``name:password``."""
        if auth is None:
            return cls(host, port)
        name, colon, password = auth.partition(":")
        if not (name and colon and password):
            raise UsageError(explain("--auth", "***", "NAME:PASSWORD, neither of them empty"))
        return cls(host, port, (name, password))

    def check(self) -> None:
        """Refuse an address at which no server can listen, before anything is loaded.

        Raises:
            UsageError: a host that is none of this machine's, or a port that another program has.
        """
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(place)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise UsageError(explain("--port", self.port, "a free port of this machine; 0 takes one")) from error
            allowed = "a name or address of this machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
            raise UsageError(explain("--host", self.host, allowed)) from error

    @property
    def warning(self) -> str | None:
        """What it means that others can reach the server; None when they cannot."""
        if self.host in (LOCAL, "localhost", "::1"):
            return None
        shield = "" if self.auth else " Anybody who reaches it can use this machine; --auth NAME:PASSWORD asks first."
        return f"--host {self.host}: other machines of the network reach the demo.{shield}"


def make_offer(
    root: Path, models: Sequence[str] = (), loras: Sequence[str] = (), any_model: bool = False, device: str = "auto",
    dtype: str = "auto",
) -> Any:  # fmt: skip
    """What visitors may choose: the shipped models and LoRAs that the server was started with.

    Raises:
        GenkitError: a model or a LoRA that does not exist.
    """
    from genkit.demo.options import Offer
    from genkit.lora.files import parse_lora
    from genkit.models import locate, shipped
    from genkit.pipelines.load import resolve_device

    for name in models:
        locate(name)
    resolve_device(device)
    named = [parse_lora(text) for text in loras]
    files = {each.path.parent.name if each.path.stem == "pytorch_lora_weights" else each.path.stem: each.path for each
             in named}  # fmt: skip
    order = ["toy-image", *sorted(shipped())]
    return Offer(root, tuple(dict.fromkeys([*models, *order])), files, any_model, device, dtype)


@contextmanager
def running(
    offer_of: Any, address: Address, *, mcp: bool = False, history: bool = True, expires: float = 3600.0
) -> Iterator[Any]:
    """A server for the time of the ``with``; yields the launched :class:`gradio.Blocks`.

    Args:
        offer_of: makes what is offered from the server's folder.
        address: where it listens.
        mcp: also serve the tabs' functions to language models (Model Context Protocol).
        history: let browsers keep a history of runs.
        expires: seconds after which a visitor's files are deleted.
    """
    _need_gradio()
    root = Path(tempfile.mkdtemp(prefix=FOLDER))
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update({"GRADIO_TEMP_DIR": str(root / "gradio"), "GRADIO_ANALYTICS_ENABLED": "False"})
    (root / "gradio").mkdir(mode=0o700)
    from genkit.demo.engine.desk import Desk
    from genkit.demo.engine.pictures import PIXELS
    from genkit.demo.engine.visitors import Visitors

    visitors, desk, ended = Visitors(root, expires), Desk(), threading.Event()
    try:
        blocks = _launched(offer_of(root), visitors, desk, address, mcp, history)
        threading.Thread(target=_sweep, args=(visitors, ended), daemon=True).start()
        try:
            with _refusing_bombs(PIXELS):
                yield blocks
        finally:
            ended.set()
            blocks.close(verbose=False)
    finally:
        visitors.close()
        desk.close()
        shutil.rmtree(root, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


_ENVIRONMENT = ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")


def _launched(offer: Any, visitors: Any, desk: Any, address: Address, mcp: bool, history: bool) -> Any:
    from genkit.demo.engine.pictures import UPLOAD
    from genkit.demo.look.theme import css, head, theme
    from genkit.demo.page import Page

    blocks = Page(offer, visitors, desk).blocks
    blocks.addresses = mcp
    blocks.launch(
        server_name=address.host, server_port=address.port or None, auth=address.auth, show_error=True, quiet=True,
        prevent_thread_lock=True, share=False, inbrowser=False, max_file_size=UPLOAD, theme=theme(), css=css(),
        head=head(), mcp_server=mcp, run_history=history, ssr_mode=False, enable_monitoring=False,
        blocked_paths=[str(Path.cwd())], footer_links=["api", "runs", "settings"] if history else ["api", "settings"],
        _frontend=False,  # no second look whether the server answers: it gives up after three seconds, on busy machines
    )  # fmt: skip
    return blocks


@contextmanager
def _refusing_bombs(pixels: int) -> Iterator[None]:
    """Pillow refuses what Gradio opens by itself beyond the same number of pixels, before it is decoded."""
    from PIL import Image

    usual = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = pixels // 2  # it warns from there on and raises beyond twice as many
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = usual


def _sweep(visitors: Any, ended: threading.Event) -> None:
    while not ended.wait(60):
        visitors.sweep()


def _need_gradio() -> None:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise UnsupportedError('the demo needs the package gradio; pip install "genkit[demo]"')
