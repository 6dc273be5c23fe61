"""Bad inputs and many clients at once, against a running demo.

Every bad input must be refused with a message, the server must go on, nothing may be written outside its folder and no
traceback may stand in its log. Of many clients each must get its own picture, or the queue's message.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from getpass import getuser
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.environment import RESULTS, environment, machine_line, report, table

SIDE = 64


#: Requests that the client would not send so begin with these words.
RAW = ("path ", "malformed ")


class Bad(NamedTuple):
    """A request that must be refused.

    Args:
        what: in a few words.
        api: name of the function.
        values: arguments that differ from the form's own.
    """

    what: str
    api: str
    values: dict[str, Any]


def upload(path: str | Path) -> dict[str, Any]:
    """A file as clients name it that is not uploaded before: the server must not open it."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that are no pictures, or not such as are taken."""
    made = {
        "text": b"this is no picture",
        "empty": b"",
        "png-head": b"\x89PNG\r\n\x1a\n",
        "zeros": bytes(4096),
        "html": b"<html><script>alert(1)</script></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
        "zip": b"PK\x03\x04" + bytes(200),
        "half-gif": b"GIF89a" + bytes(20),
    }
    found = {}
    for name, data in made.items():
        found[name] = folder / f"{name}.{'svg' if name == 'svg' else 'png'}"
        found[name].write_bytes(data)
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole, "PNG")
    found["cut-png"] = folder / "cut.png"
    found["cut-png"].write_bytes(whole.getvalue()[:900])
    found["bomb"] = folder / "bomb.png"
    found["bomb"].write_bytes(bomb(20_000, 20_000))
    found["larger-bomb"] = folder / "larger-bomb.png"
    found["larger-bomb"].write_bytes(bomb(60_000, 60_000))
    found["float"] = folder / "float.tiff"
    Image.fromarray(np.ones((16, 16), np.float32)).save(found["float"])
    return found


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def good_picture(folder: Path, side: int = SIDE) -> Path:
    """A picture that every tab takes."""
    path = folder / f"good-{side}.png"
    Image.new("RGB", (side, side), (200, 60, 40)).save(path)
    return path


def bad_requests(folder: Path) -> Iterator[Bad]:
    """More than a hundred requests that must be refused."""
    from gradio_client import handle_file

    picture = handle_file(str(good_picture(folder)))
    numbers = ("-1", "0", "1e99", "nan", "inf", "NaN", "0x10", "twenty", "1_000", "9" * 100, "\0", "1; rm -rf /", "½")
    for value in numbers:
        yield Bad(f"steps {value[:12]!r}", "/generate", {"steps": value})
    for name in ("width", "height"):
        for value in ("63", "1", "100000", "-64", "a"):
            yield Bad(f"{name} {value}", "/generate", {name: value})
    for value in ("-1", "nan", "x", "1e9"):
        yield Bad(f"guidance {value}", "/generate", {"guidance_scale": value})
    for value in (-1, 2**63, "seed", 1.5, [1], {"a": 1}, True):
        yield Bad(f"seed {value!r:.20}", "/generate", {"seed": value, "keep_seed": True})
    for value in ("", "no-model", "../toy-image", "/etc", "owner/name", "toy-image\0", "~root", ["toy-image"], 3, None):
        yield Bad(f"model {value!r}", "/generate", {"model": value})
    for value in ("no-method", "recipe: ../../etc/passwd", "recipe: /etc/passwd", "Radial", 7, ["radial"]):
        yield Bad(f"attention {value!r}", "/generate", {"attention": value})
    for value in ("weights=/etc/passwd", "window", "window=x", "no=1", "window=1x1x1x1x1", "=", "dilation=-1"):
        yield Bad(f"method settings {value}", "/generate", {"attention": "neighborhood", "attention_args": value})
    for value in ("steps=99:", "layers=-99", "steps=x", "nowhere=1", "branches=cond", "steps=5:1"):
        yield Bad(f"schedule {value}", "/generate", {"attention": "neighborhood", "schedule": value})
    for value in (["/etc/passwd"], ["../../x.safetensors"], ["no LoRA"], "no LoRA", [None], [["x"]]):
        yield Bad(f"LoRA {value!r}", "/generate", {"lora": value})
    for value in ("a " * 5000, "x\0y", ["a"], 5, {"prompt": "a"}):
        yield Bad(f"prompt {str(value)[:20]!r}", "/generate", {"prompt": value})
    for value in (0, -3, "many", 2.5, 10**9):
        yield Bad(f"variants {value}", "/generate", {"variants": value})
    for name, path in bad_files(folder).items():
        yield Bad(f"{name} to edit", "/edit", {"image": handle_file(str(path))})
        yield Bad(f"{name} as a style", "/style", {"image": picture, "style": handle_file(str(path))})
        yield Bad(f"{name} as a mask", "/inpaint", {"mask": handle_file(str(path))})
    for path in (
        "/etc/passwd",
        "../../../etc/passwd",
        "/proc/self/environ",
        "file:///etc/passwd",
        "/dev/zero",
        "C:\\x",
    ):
        yield Bad(f"path {path}", "/edit", {"image": upload(path)})
    for value in ("a text", 7, ["a"], {"a": 1}, True):
        yield Bad(f"malformed picture {value!r}", "/edit", {"image": value})
        yield Bad(f"malformed canvas {value!r}", "/inpaint", {"canvas": value})
        yield Bad(f"malformed files {value!r}", "/train", {"files": value})
    for value in ({"id": "0"}, {"id": 5}, {"background": None, "layers": "x"}):
        yield Bad(f"malformed canvas {value!r}", "/inpaint", {"canvas": value})
    yield Bad("nothing to edit", "/edit", {"image": None})
    yield Bad("no source prompt", "/edit", {"image": picture, "source_prompt": ""})
    yield Bad("a word that is not in the prompt", "/edit", {"image": picture, "words": "zebra"})
    yield Bad("unknown kind of change", "/edit", {"image": picture, "preset": "explode"})
    yield Bad("unknown editing method", "/edit", {"image": picture, "method": "magic"})
    yield Bad("a method of other models", "/edit", {"image": picture, "method": "flowedit"})
    for value in ("-0.1", "1.1", "nan"):
        yield Bad(f"keep {value}", "/edit", {"image": picture, "keep": value})
    yield Bad("a clip for a model of pictures", "/edit", {"image": None, "clip": None})
    yield Bad("nothing painted", "/inpaint", {})
    yield Bad("no picture to paint on", "/inpaint", {"canvas": None})
    wide = handle_file(str(good_picture(folder, 96)))
    yield Bad("a mask of another size", "/inpaint", {"mask": wide})
    white = folder / "white.png"
    Image.new("RGB", (128, 128), "white").save(white)
    for name in ("feather", "mask_grow", "context"):
        for value in ("100000", "-100000", "x"):
            yield Bad(f"{name} {value}", "/inpaint", {name: value, "mask": handle_file(str(white))})
    black = folder / "black.png"
    Image.new("RGB", (128, 128)).save(black)
    yield Bad("an empty mask", "/inpaint", {"mask": handle_file(str(black))})
    for value in (-1, 2, "much", [0.5]):
        yield Bad(f"style keep {value}", "/style", {"image": picture, "style": picture, "keep": value})
    yield Bad("no style", "/style", {"image": picture, "style": None})
    yield Bad("nothing to compare with", "/compare", {"attention": "The model's own"})
    yield Bad("comparing with no method", "/compare", {"attention": None})
    yield Bad("nothing to train on", "/train", {"files": []})
    yield Bad("a name with a path", "/train", {"lora_name": "../../x", "files": [picture]})
    yield Bad(
        "a kind of file that is not trained on", "/train", {"files": [handle_file(str(bad_files(folder)["float"]))]}
    )
    yield Bad("too many steps of training", "/train", {"files": [picture], "max_train_steps": "1000000"})


def refused_raw(client: Any, bad: Bad) -> str | None:
    """As :func:`refused`, past the client, which would upload the file that a path names here."""
    import httpx

    told = client.view_api(return_format="dict", print_info=False)["named_endpoints"][bad.api]["parameters"]
    given = [bad.values.get(each["parameter_name"], each.get("parameter_default")) for each in told]
    address = f"{client.src.rstrip('/')}/gradio_api/call{bad.api}"
    begun = httpx.post(address, json={"data": given}, timeout=300)
    if begun.status_code != 200:
        return begun.text
    answer = httpx.get(f"{address}/{begun.json()['event_id']}", timeout=300).text
    return answer.partition("event: error")[2].strip() or None if "event: error" in answer else None


def refused(client: Any, bad: Bad) -> str | None:
    """The message a bad request was refused with; None when it was taken."""
    if bad.what.startswith(RAW):
        return refused_raw(client, bad)
    usual = {} if bad.api == "/train" else {"steps": "1"}  # one that is taken is at least a short one
    if bad.api in ("/generate", "/compare"):
        usual |= {"width": str(SIDE), "height": str(SIDE)}
    try:
        client.predict(api_name=bad.api, **usual | bad.values)
    except Exception as error:  # whatever the client raises for the server's answer
        return str(error) or type(error).__name__
    return None


def fuzz(server: Server) -> dict[str, Any]:
    """Send every bad request; what was taken, what was refused without saying why, what lies outside the folder, and
    after which requests a traceback stood in the log."""
    from gradio_client import Client

    taken, mute, traced, seconds = [], [], {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as made:
        requests = list(bad_requests(Path(made)))
        before = {path.name for path in server.folder.iterdir()} | {"torchinductor_" + getuser()}  # PyTorch's own
        client = Client(server.url, verbose=False, download_files=made)
        for bad in requests:
            message = refused(client, bad)
            if message is None:
                taken.append(bad.what)
            elif len(message) < 8 or "Traceback" in message:
                mute.append(f"{bad.what}: {message}")
            print(f"{bad.api} {bad.what}: {message or 'TAKEN'}", flush=True)
            if found := server.tracebacks():
                traced[bad.what] = found
        after = {path.name for path in server.folder.iterdir()}
        alive = refused(client, Bad("a good one", "/generate", {"prompt": "a red circle"})) is None
    return {
        "requests": len(requests), "taken": taken, "without a message": mute, "alive": alive, "tracebacks": traced,
        "written outside": sorted(after - before), "seconds": round(time.perf_counter() - seconds, 1),
    }  # fmt: skip


def load(
    url: str, clients: int, requests: int, steps: int, model: str = "toy-image", side: int = SIDE, rounds: int = 1,
    memory: Callable[[], int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Many clients at once, each with prompts and seeds of its own, in rounds.

    Args:
        url: of the server.
        clients, requests: how many, and how many requests all of them send in a round.
        steps, model, side: of every request.
        rounds: one after the other, by the same clients.
        memory: tells the server's memory in MiB.

    Returns:
        how many were answered and refused, whose answer was not its own, and the memory before and after each round.
    """
    from gradio_client import Client

    from genkit.media.files import read_settings

    size = {"width": str(side), "height": str(side)}
    asked = {"model": model, "steps": str(steps), "keep_seed": True, "variants": 1, **size}
    lock, mixed, rows = threading.Lock(), [], []
    with tempfile.TemporaryDirectory(prefix="demo-load-") as kept:
        opened = [Client(url, verbose=False, download_files=kept) for _ in range(clients)]

        def ask(number: int) -> str:
            prompt = f"a red circle number {number}"
            try:
                image = opened[number % clients].predict(api_name="/generate", prompt=prompt, seed=number, **asked)[0]
                stored = read_settings(Path(image["value"] if isinstance(image, dict) else image))["settings"]
            except Exception as error:  # the queue's message, or a fault
                return f"refused: {str(error)[:90]}"
            if (stored["prompt"], stored["seed"]) != (prompt, number):
                with lock:
                    mixed.append({"asked": [prompt, number], "got": [stored["prompt"], stored["seed"]]})
            return "answered"

        ask(0)
        before = memory() if memory is not None else None
        for index in range(rounds):
            started = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                told = Counter(pool.map(ask, range(index * requests + 1, (index + 1) * requests + 1)))
            row = {"round": index + 1, **told, "seconds": round(time.perf_counter() - started, 1)}
            rows.append(row | ({"MiB after": memory()} if memory is not None else {}))
    return {
        "clients": clients, "requests": requests, "rounds": rows, "mixed up": mixed, "MiB before": before,
    }  # fmt: skip


class Server:
    """``genkit demo`` in a process and a temporary folder of its own, as users start it.

    Args:
        folder: its temporary folder.
        options: further ones of ``genkit demo``.
    """

    def __init__(self, folder: Path, *options: str):
        self.folder = folder
        self._log, self._read = folder.parent / "server.log", 0
        self._log.touch()
        command = [sys.executable, "-m", "genkit", "demo", "--port", "0", "--device", "cpu", *options]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(folder)}
            )
        self.url = self._address()

    def _address(self, seconds: float = 180.0) -> str:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and self._process.poll() is None:
            if found := re.search(r"http://[^\s]+", self.log()):
                return found[0].rstrip("/")
            time.sleep(0.2)
        self.end()
        raise RuntimeError(f"the demo did not start:\n{self.log()}")

    def log(self) -> str:
        """All it has written to its output and its standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def tracebacks(self) -> list[str]:
        """Tracebacks written since the last call."""
        new = self.log()[self._read :]
        self._read += len(new)
        return [part.strip()[-3000:] for part in new.split("Traceback (most recent call last):")[1:]]

    def memory(self) -> int:
        """Its resident memory in MiB."""
        fields = Path(f"/proc/{self._process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

    def end(self) -> int | None:
        """End it as what stops services does; its exit status, negative when it had to be killed."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--clients", type=int, default=8, help="clients at once")
    parser.add_argument("--requests", type=int, default=50, help="requests of all of them together, in every round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of requests to one server")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps of each")
    parser.add_argument("--only", choices=("fuzz", "load"), help="one of the two")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for demo.json and demo.md")


def run(options: argparse.Namespace) -> int:
    """Start a server, fuzz it, load it, and tell."""
    found: dict[str, Any] = {"environment": environment() | {"gradio": version("gradio")}}
    with tempfile.TemporaryDirectory(prefix="demo-benchmark-") as made:
        folder = Path(made, "tmp")
        folder.mkdir()
        server = Server(folder)
        try:
            if options.only != "load":
                found["fuzz"] = fuzz(server)
            if options.only != "fuzz":
                found["load"] = load(
                    server.url, options.clients, options.requests, options.steps, rounds=options.rounds,
                    memory=server.memory,
                )  # fmt: skip
                found["load"]["tracebacks"] = server.tracebacks()
        finally:
            found["exit status"] = server.end()
            found["files left behind"] = sorted(each.name for each in folder.glob("genkit-*"))
    report("demo", found, markdown(found, options), options.output)
    return int(bool(faults(found)))


def faults(found: dict[str, Any]) -> list[str]:
    """What of the results must not be."""
    fuzzed, loaded = found.get("fuzz", {}), found.get("load", {})
    names = ("taken", "without a message", "written outside", "tracebacks")
    told = [f"{name}: {fuzzed[name]}" for name in names if fuzzed.get(name)]
    told += [f"{name}: {loaded[name]}" for name in ("mixed up", "tracebacks") if loaded.get(name)]
    told += ["the server answers no more"] if fuzzed and not fuzzed["alive"] else []
    return told + ([f"files left behind: {found['files left behind']}"] if found["files left behind"] else [])


def markdown(found: dict[str, Any], options: argparse.Namespace) -> str:
    """The report."""
    facts = found["environment"]
    lines = ["# The demo under bad requests and under load", "", machine_line(facts), f"gradio {facts['gradio']}.", ""]
    if fuzzed := found.get("fuzz"):
        lines += [
            f"{fuzzed['requests']} bad requests, one after the other, in {fuzzed['seconds']} s: "
            f"{len(fuzzed['taken'])} taken, {len(fuzzed['without a message'])} refused without a message, "
            f"{len(fuzzed['tracebacks'])} with a traceback in the server's log, {len(fuzzed['written outside'])} files "
            f"outside the server's folder; afterwards it {'serves' if fuzzed['alive'] else 'is dead'}.", "",
        ]  # fmt: skip
    if loaded := found.get("load"):
        lines += [
            f"{loaded['requests']} requests a round from {loaded['clients']} clients (toy-image, {SIDE}x{SIDE}, "
            f"{options.steps} steps), rounds one after the other to one server; {len(loaded['mixed up'])} answers were "
            f"another's. Resident memory of the server: {loaded['MiB before']} MiB before (after one request).",
            "", table(loaded["rounds"]), "",
        ]  # fmt: skip
    wrong = faults(found)
    return "\n".join([*lines, *(["Must not be:", "", *(f"- {each}" for each in wrong), ""] if wrong else [])])
