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
def server(tiny_sd):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record)
    logging.getLogger().addHandler(handler)
    with running(partial(make_offer, models=[str(tiny_sd)], device="cpu"), Address(port=0)) as blocks:
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


def test_everybody_gets_their_own_picture(server, tiny_sd):
    found = script.load(server[0].local_url, clients=3, requests=6, steps=1, model=str(tiny_sd), side=32)
    assert found["rounds"][0]["answered"] == 6 and found["mixed up"] == []


def test_functions_are_named_and_their_parameters_too(client):
    told = client.view_api(return_format="dict")["named_endpoints"]
    assert set(told) == {"/generate", "/edit", "/inpaint", "/style", "/compare", "/train"}
    names = [each["parameter_name"] for each in told["/edit"]["parameters"]]
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


def test_a_machine_too_busy_for_gradios_own_look_at_the_page_still_serves_it(monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)  # what it says after three seconds
    with running(partial(make_offer, device="cpu"), Address(port=0)) as blocks:
        assert blocks.local_url.startswith("http://127.0.0.1:")
