"""``genkit demo``: every task of the package in the browser."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

import typer

from genkit.cli.output import note, quiet_libraries, say, warn


def demo(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than 127.0.0.1 let other machines in.")
    ] = "127.0.0.1",
    auth: Annotated[
        str | None, typer.Option(metavar="NAME:PASSWORD", help="Ask for this name and password first.")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Model folder or hub id to offer beside the shipped ones. Repeatable.")
    ] = None,
    lora: Annotated[list[str] | None, typer.Option(help="LoRA file or folder to offer. Repeatable.")] = None,
    allow_any_model: Annotated[
        bool, typer.Option("--allow-any-model", help="Let visitors type any folder of this machine or hub id.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Serve the same functions to language models too (needs gradio[mcp]).")
    ] = False,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Let browsers keep a history of runs.")
    ] = True,
) -> None:
    """Open the demo in the browser: generate, edit, inpaint, style, compare attentions, train a LoRA."""
    note("loading ...")
    quiet_libraries()
    from functools import partial

    from genkit.demo.serve import Address, make_offer, running

    logging.basicConfig(format="genkit: %(message)s", level=logging.WARNING)
    address = Address.of(host, port, auth)
    address.check()
    if address.warning is not None:
        warn(address.warning)
    if allow_any_model:
        warn("--allow-any-model: visitors can load any model folder that this account can read, and download others")
    offer_of = partial(
        make_offer, models=model or (), loras=lora or (), any_model=allow_any_model, device=device, dtype=dtype
    )
    # What stops services ends the demo as Ctrl+C does: visitors' files are deleted.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with running(offer_of, address, mcp=mcp, history=history) as blocks:
        say(f"the demo runs at {blocks.local_url}  (Ctrl+C ends it)")
        blocks.block_thread()
