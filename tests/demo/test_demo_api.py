"""The demo as programs use it: what is wrong is refused with a message, what is right is everybody's own."""

from __future__ import annotations

import logging
import os
import stat
from functools import partial
from pathlib import Path

import pytest

from genkit.errors import UsageError

pytest.importorskip("gradio", reason="the demo needs Gradio (make setup-test)")
from benchmarks import demo as script  # noqa: E402
from genkit.demo.serve import Address, make_offer, running  # noqa: E402

#: Of the script's requests, those whose kind no other one has.
SOME = (
    "steps 'nan'", "width 63", "seed [1]", "model '/etc'", "attention 'recipe: ../../etc/passwd'",
    "method settings weights=/etc/passwd", "schedule steps=99:", "LoRA ['/etc/passwd']", "prompt '5'", "variants 0",
    "larger-bomb to edit", "cut-png as a style", "text as a mask", "path /etc/passwd", "no source prompt",
    "a word that is not in the prompt", "nothing painted", "an empty mask", "a mask of another size", "style keep -1",
    "malformed picture 'a text'", "malformed files {'a': 1}", "malformed canvas {'id': '0'}", "malformed canvas True",
    "nothing to compare with", "a name with a path", "a kind of file that is not trained on",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny_sd, tiny_wan):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record)
    logging.getLogger().addHandler(handler)
    with running(partial(make_offer, models=[str(tiny_sd), str(tiny_wan)], device="cpu"), Address(port=0)) as blocks:
        yield blocks, lines
    logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    from gradio_client import Client

    return Client(server[0].local_url, verbose=False, download_files=str(tmp_path_factory.mktemp("answers")))


def test_bad_requests_are_refused_with_a_message_and_no_traceback(server, client, tmp_path, capfd):
    bad = {each.what: each for each in script.bad_requests(tmp_path)}
    assert len(bad) > 100
    answers = {what: script.refused(client, bad[what]) for what in SOME}
    assert [what for what, message in answers.items() if message is None or len(message) < 8] == []
    assert "“" not in answers["steps 'nan'"] and answers["width 63"].startswith("“Width”")
    assert "60000x60000" in answers["larger-bomb to edit"] or "pixels" in answers["larger-bomb to edit"]
    assert "root:" not in str(answers) and str(Path.cwd()) not in str(answers)
    assert "Traceback" not in capfd.readouterr().err
    assert not any(record.exc_info for record in server[1])


def test_what_gradio_cannot_read_is_one_line_of_the_log(server, client, capfd):
    bad = script.Bad("malformed picture", "/edit", {"image": "a text"})
    begun = len(server[1])
    assert "Input should be" in script.refused(client, bad)
    lines = [record for record in server[1][begun:] if record.name == "genkit.demo"]
    assert [(record.levelname, record.exc_info) for record in lines] == [("WARNING", None)]
    assert lines[0].getMessage().startswith("refused: ") and capfd.readouterr().err.count("\n") <= 1


def test_what_programs_send_wrongly_is_told_without_inner_workings(server, client):
    def told(path, given):
        return script.refused(client, script.Bad("", path, given))

    assert told("/generate", {"keep_seed": "x"}) == "Keep: got 'x', allowed: true or false"
    assert told("/inpaint", {"mask_invert": {"a": 1}}).startswith(
        "Swap inside and outside: got {'a': 1}, allowed: true"
    )
    assert "pydantic" not in told("/edit", {"image": "a text"})
    assert told("/generate", {"prompt": "red " * 99, "model": "toy-image"}).endswith(
        "tokens, the model reads 77; shorten it"
    )
    for address in ("http://198.51.100.1/a.png", "https://example.invalid/a.png"):
        image = {"path": address, "meta": {"_type": "gradio.FileData"}}
        assert told("/edit", {"image": image}) == "Only files that you upload here are opened"


def test_everybody_gets_their_own_picture(server, tiny_sd):
    found = script.load(server[0].local_url, clients=3, requests=6, steps=1, model=str(tiny_sd), side=32)
    assert found["rounds"][0]["answered"] == 6 and found["mixed up"] == []


def test_a_video_is_generated_and_edited(client, tiny_wan):
    from gradio_client import handle_file

    short = {"model": str(tiny_wan), "steps": "1"}
    made = client.predict(api_name="/generate", prompt="a", width="32", height="32", num_frames="5", **short)
    video = next(each for each in made if str(_file(each)).endswith(".mp4"))
    edited = client.predict(api_name="/edit", clip=handle_file(_file(video)), source_prompt="a", prompt="b", **short)
    assert [str(_file(each)).endswith(".mp4") for each in edited].count(True) >= 2  # before and after
    assert any("like the input, all pixels" in str(each) or "every pixel equal" in str(each) for each in edited)


def test_a_video_with_sound_is_generated(client):
    import av

    size = {"width": "64", "height": "64", "num_frames": "9"}
    made = client.predict(api_name="/generate", prompt="a green square bounces", model="toy-av", steps="1", **size)
    video = next(_file(each) for each in made if str(_file(each)).endswith(".mp4"))
    with av.open(video) as opened:
        assert [stream.type for stream in opened.streams] == ["video", "audio"]


def _file(answer):
    value = answer.get("value", answer.get("video", answer)) if isinstance(answer, dict) else answer
    return value.get("video", value.get("path", "")) if isinstance(value, dict) else value


def test_scenes_and_variants_are_answered_all_together(client, tiny_sd):
    short = {"model": str(tiny_sd), "steps": "1", "width": "32", "height": "32"}
    scenes = "a red circle on blue\na red circle on black"
    made = client.predict(api_name="/consistent", subjects="a red circle", scenes=scenes, **short)
    assert ["a red circle on blue", "a red circle on black"] in [_captions(each) for each in made]
    made = client.predict(api_name="/generate", prompt="a", variants=2, seed=4, keep_seed=True, **short)
    assert ["seed 4", "seed 5"] in [_captions(each) for each in made]


def test_a_style_is_transferred(client, tiny_sd, tmp_path):
    from gradio_client import handle_file

    picture = handle_file(str(script.good_picture(tmp_path, 32)))
    made = client.predict(api_name="/style", image=picture, style=picture, model=str(tiny_sd), steps="1")
    assert any("32 × 32" in str(each) for each in made)


def _captions(answer):
    value = answer.get("value") if isinstance(answer, dict) else answer
    return [each.get("caption") for each in value] if isinstance(value, list) and value else None


def test_functions_are_named_and_their_parameters_too(client):
    told = client.view_api(return_format="dict")["named_endpoints"]
    assert set(told) == {
        "/generate",
        "/edit",
        "/inpaint",
        "/style",
        "/consistent",
        "/compare",
        "/train",
        "/live",
        "/live_next",
    }
    names = [each["parameter_name"] for each in told["/edit"]["parameters"]]
    assert [each["parameter_name"] for each in told["/live_next"]["parameters"]] == ["text"]
    assert names[:5] == ["image", "clip", "source_prompt", "prompt", "preset"] and "token" not in names


def test_files_lie_in_a_folder_that_only_the_server_reads(server):
    root = Path(os.environ["GRADIO_TEMP_DIR"]).parent
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_password_is_asked_for_and_others_are_told_when_the_network_is_let_in():
    assert Address.of("127.0.0.1", 1, None).warning is None
    assert "--auth" in Address.of("0.0.0.0", 1, None).warning
    assert "--auth" not in Address.of("0.0.0.0", 1, "me:secret").warning
    for wrong in ("me", ":secret", "me:", ""):
        with pytest.raises(UsageError, match="NAME:PASSWORD") as told:
            Address.of("127.0.0.1", 1, wrong)
        assert "secret" not in str(told.value)


def test_nobody_gets_in_without_the_password():
    import httpx
    from gradio_client import Client

    with running(partial(make_offer, device="cpu"), Address(port=0, auth=("me", "secret"))) as blocks:
        for route in ("config", "gradio_api/info", "gradio_api/call/generate"):
            assert httpx.get(blocks.local_url + route).status_code in (401, 405), route
        asked = httpx.post(f"{blocks.local_url}gradio_api/call/generate", json={"data": []})
        assert asked.status_code == 401
        with pytest.raises(Exception, match="[Ii]ncorrect credentials|401|[Ll]ogin"):
            Client(blocks.local_url, auth=("me", "wrong"), verbose=False)
        told = Client(blocks.local_url, auth=("me", "secret"), verbose=False).view_api(return_format="dict")
        assert "/generate" in told["named_endpoints"]


def test_language_models_are_served_the_tabs_as_tools(tiny_sd):
    pytest.importorskip("mcp", reason='serving language models needs pip install "gradio[mcp]"')
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamablehttp_client

    async def ask(url):
        async with streamablehttp_client(url) as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            given = {"prompt": "a", "model": str(tiny_sd), "width": "32", "height": "32", "variants": 1}
            right = await session.call_tool("generate", given | {"steps": "1"})
            wrong = await session.call_tool("generate", given | {"steps": "nan"})
            return {each.name for each in tools}, right, wrong

    with running(partial(make_offer, models=[str(tiny_sd)], device="cpu"), Address(port=0), mcp=True) as blocks:
        names, right, wrong = asyncio.run(ask(f"{blocks.local_url}gradio_api/mcp/"))
    assert names == {"generate", "edit", "inpaint", "style", "consistent", "compare", "train"}
    assert not right.isError and "gradio_api/file=" in str(right.content) and ".png" in str(right.content)
    assert wrong.isError and "Steps" in str(wrong.content)


def test_a_machine_too_busy_for_gradios_own_look_at_the_page_still_serves_it(monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)  # what it says after three seconds
    with running(partial(make_offer, device="cpu"), Address(port=0)) as blocks:
        assert blocks.local_url.startswith("http://127.0.0.1:")


def test_an_address_where_no_server_can_listen_is_refused_before_anything_is_loaded(capsys):
    import socket

    from genkit.cli.main import main

    Address("127.0.0.1", 0).check()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for given, words in (
            (["--port", str(port)], f"--port: got {port}, allowed: a free port"),
            (["--host", "999.1.1.1"], "--host: got '999.1.1.1', allowed: a name or address of this machine"),
            (["--host", "203.0.113.7"], "--host: got '203.0.113.7', allowed: a name or address of this machine"),
        ):
            assert main(["demo", *given]) == 2
            assert words in capsys.readouterr().err
