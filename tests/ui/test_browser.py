"""The page in a real browser: what people see and do, by mouse, by keyboard, on a phone, offline."""

from __future__ import annotations

import base64
import json
import shutil
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest

from foldserve.serving.client.sync_client import Client
from foldserve.serving.errors import ServingError
from tests.support.browser import Visit, open_browser
from tests.support.encoded_images import encode, photograph, png_that_claims
from tests.support.free_ports import free_ports
from tests.support.page_process import PageProcess
from tests.support.server_process import ServerProcess
from tests.ui.conftest import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

    Open = Callable[..., Visit]

pytestmark = pytest.mark.browser

PICTURE = encode(np.asarray(photograph(64, 48)))
OTHER = encode(np.asarray(photograph(64, 48, seed=5)))
# Where the page's own HTML stands for itself, as axe and the keyboard meet it.
STEPS = 120


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(
    browser: Browser, server: ServerProcess, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PageProcess]:
    folder = tmp_path_factory.mktemp("page")
    flags = ("--repository", str(repository), "--keep", "kept", "--max-upload-mib", "1")
    with PageProcess(server.address, folder, *flags) as process:
        yield process
        # Whatever the tests did, in any order: the page itself called nobody.
        assert process.connections() <= {"127.0.0.1", "::1", "localhost"}
        assert "Traceback" not in process.log


@pytest.fixture
def visit(browser: Browser, page: PageProcess) -> Iterator[Open]:
    """Opens the page; in the end, checks that the browser asked nobody else for anything."""
    visits = []

    def open_page(url: str = page.url, **window: object) -> Visit:
        visits.append(Visit(browser, url, **window))
        return visits[-1]

    yield open_page
    for each in visits:
        assert each.requests, "the requests are written down"
        assert each.strangers() == []
        each.close()


def choose_file(visited: Visit, name: str, content: bytes) -> None:
    visited.page.locator("#fs-picture input[type=file]").set_input_files(
        {"name": name, "mimeType": "image/png", "buffer": content}
    )


def wait_for_answer(visited: Visit, picture: bytes, server: ServerProcess, version: str = "") -> None:
    """Wait until the page shows the labels that the server gives a picture."""
    with Client(server.address) as client:
        answer = client.classify("grey", [picture], version, top_k=3)
    shown = visited.page.locator("#fs-answer")
    shown.get_by_text(answer.sha256).wait_for()
    for label in answer.labels[0]:
        bar = shown.locator("li", has_text=label.name)
        bar.get_by_text(f"{label.probability:.1%}", exact=True).wait_for()
    shown.get_by_text(f"grey, version {answer.version}").wait_for()


def choose_model(visited: Visit, name: str) -> None:
    visited.page.locator("#fs-model input").click()
    visited.page.get_by_role("option", name=name).click()


def test_a_visit_by_keyboard_alone_from_an_example_to_a_kept_correction(
    visit: Open, page: PageProcess, server: ServerProcess
) -> None:
    visited = visit()
    keyboard = visited.page.keyboard
    visited.page.locator("[data-example='0']").wait_for()

    def tab_to(what: str) -> None:
        for _ in range(STEPS):
            keyboard.press("Tab")
            if visited.page.evaluate("(what) => document.activeElement.matches(what)", what):
                return
        pytest.fail(f"the keyboard never reaches {what}")

    assert visited.violations() == []
    tab_to("[data-example='0']")
    outline = visited.page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the keyboard's place is seen"
    keyboard.press("Enter")
    visited.page.locator(".fs-answer").wait_for()
    tab_to("#fs-why-button")
    keyboard.press("Enter")
    visited.page.locator(".fs-why img").wait_for()
    tab_to("#fs-right input")
    keyboard.type("a new/label")
    keyboard.press("Enter")
    tab_to("#fs-keep")
    keyboard.press("Enter")
    visited.page.locator(".fs-kept").wait_for()
    assert len(list((page.folder / "kept" / "a new%2Flabel").glob("*.png"))) == 1
    assert visited.violations() == []
    assert visited.sideways() == 0
    assert visited.errors == []


def test_an_uploaded_file_is_answered_as_the_server_answers_it(visit: Open, server: ServerProcess) -> None:
    visited = visit()
    choose_model(visited, "grey")
    choose_file(visited, "a.png", PICTURE)
    wait_for_answer(visited, PICTURE, server)
    visited.page.locator("#fs-version input").click()
    visited.page.get_by_role("option", name="1", exact=True).click()
    wait_for_answer(visited, PICTURE, server, version="1")
    # Labels are text, never HTML.
    assert visited.page.locator("#fs-answer b").count() == 0
    assert visited.page.locator("#fs-answer").get_by_text(LABELS[1]).first.is_visible()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"no picture at all", None, id="not an image"),
        pytest.param(png_that_claims(30_000, 30_000), None, id="huge image", marks=pytest.mark.slow),
        pytest.param(bytes(2**20 + 10), "maximum allowed size", id="huge file", marks=pytest.mark.slow),
    ],
)
def test_pictures_that_are_refused_are_refused_in_the_servers_words(
    content: bytes, reason: str | None, visit: Open, server: ServerProcess
) -> None:
    visited = visit()
    choose_model(visited, "grey")
    choose_file(visited, "a.png", content)
    if reason is None:
        with Client(server.address) as client, pytest.raises(ServingError) as refused:
            client.classify("grey", [content])
        visited.page.get_by_role("alert").get_by_text(str(refused.value)).wait_for()
    else:
        visited.page.get_by_text(reason).first.wait_for()
        assert visited.page.locator(".fs-answer").count() == 0


@pytest.mark.slow
def test_an_unknown_model_is_refused_in_the_servers_words(visit: Open, server: ServerProcess) -> None:
    visited = visit()
    choose_model(visited, "grey")
    choose_file(visited, "a.png", PICTURE)
    wait_for_answer(visited, PICTURE, server)
    visited.page.locator("#fs-model input").fill("nothing")
    visited.page.keyboard.press("Enter")
    with Client(server.address) as client, pytest.raises(ServingError) as refused:
        client.classify("nothing", [PICTURE])
    visited.page.get_by_role("alert").get_by_text(str(refused.value)).wait_for()
    assert visited.violations() == []


@pytest.mark.slow
def test_a_picture_is_pasted(visit: Open, server: ServerProcess) -> None:
    visited = visit()
    choose_model(visited, "grey")
    visited.page.evaluate(
        """async (content) => {
          const blob = await (await fetch('data:image/png;base64,' + content)).blob();
          await navigator.clipboard.write([new ClipboardItem({ 'image/png': blob })]);
        }""",
        base64.b64encode(PICTURE).decode(),
    )
    visited.page.get_by_role("button", name="Paste from clipboard").click()
    visited.page.locator(".fs-answer").wait_for()
    assert visited.violations() == []


@pytest.mark.slow
def test_a_photograph_is_taken(visit: Open) -> None:
    visited = visit()
    choose_model(visited, "grey")
    visited.page.get_by_role("button", name="Capture from camera").click()
    visited.page.get_by_text("Click to Access Webcam").click()
    visited.page.get_by_role("button", name="capture photo").click()
    visited.page.locator(".fs-answer").wait_for()
    assert visited.violations() == []


@pytest.mark.slow
def test_a_drawing_is_answered_by_mouse_and_by_keyboard(visit: Open, server: ServerProcess) -> None:
    visited = visit()
    choose_model(visited, "grey")
    visited.page.get_by_role("tab", name="Draw").click()
    canvas = visited.page.locator("canvas")
    box = canvas.bounding_box()
    assert box is not None
    mouse = visited.page.mouse
    for row in range(40, 240, 20):  # strokes that follow each other faster than the answers
        mouse.move(box["x"] + 40, box["y"] + row)
        mouse.down()
        mouse.move(box["x"] + 200, box["y"] + row + 10, steps=3)
        mouse.up()
    visited.page.locator(".fs-answer").wait_for()
    visited.page.get_by_role("tab", name="Draw").focus()  # the pen's place is no part of the drawing
    drawn = base64.b64decode(canvas.evaluate("(canvas) => canvas.toDataURL('image/png')").partition(",")[2])
    wait_for_answer(visited, drawn, server)
    visited.page.get_by_role("button", name="Clear").click()
    canvas.focus()
    for key in ("Space", *["ArrowRight"] * 12, *["ArrowDown"] * 12, "Space"):
        visited.page.keyboard.press(key)
    visited.page.get_by_text("The pen is up.").wait_for()
    visited.page.get_by_role("tab", name="Draw").focus()
    second = base64.b64decode(canvas.evaluate("(canvas) => canvas.toDataURL('image/png')").partition(",")[2])
    assert second != drawn
    wait_for_answer(visited, second, server)
    assert visited.violations() == []
    assert visited.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_of_it_and_axe_finds_nothing(
    dark: bool, visit: Open, server: ServerProcess
) -> None:
    visited = visit(width=360, dark=dark)
    choose_model(visited, "grey")
    visited.page.locator("[data-example='0']").wait_for()
    assert visited.violations() == []
    choose_file(visited, "a.png", PICTURE)
    wait_for_answer(visited, PICTURE, server)
    visited.page.locator("#fs-why-button").click()
    visited.page.locator(".fs-why img").wait_for()
    visited.page.locator("#fs-right input").click()
    visited.page.get_by_role("option", name=LABELS[0]).wait_for()
    assert visited.violations() == []
    visited.page.get_by_role("option", name=LABELS[0]).click()
    visited.page.locator("#fs-keep").click()
    visited.page.locator(".fs-kept").wait_for()
    visited.page.get_by_role("tab", name="Draw").click()
    visited.page.locator("canvas").wait_for()
    assert visited.violations() == []
    assert visited.sideways() == 0


@pytest.mark.slow
def test_the_page_says_that_the_server_is_gone_and_comes_back_with_it(
    visit: Open, repository: Path, tmp_path: Path
) -> None:
    port = str(*free_ports(1))
    with (
        ServerProcess(repository, tmp_path / "first", "--port", port) as first,
        PageProcess(first.address, tmp_path / "page") as page,
    ):
        visited = visit(url=page.url)
        choose_model(visited, "grey")
        choose_file(visited, "a.png", PICTURE)
        wait_for_answer(visited, PICTURE, first)
        first.process.kill()
        visited.page.get_by_text("The server is gone.").wait_for()
        assert visited.violations() == []
        choose_file(visited, "b.png", OTHER)
        visited.page.get_by_role("alert").wait_for()
        models = tmp_path / "models"
        models.mkdir()
        with ServerProcess(models, tmp_path / "second", "--port", port) as second:
            # A server is reached before its models are ready.
            visited.page.get_by_text("the server has no models").wait_for()
            shutil.copytree(repository / "grey", models / "grey")
            visited.page.get_by_text("Connected to").wait_for()
            # The answer that was owed comes by itself.
            wait_for_answer(visited, OTHER, second)


@pytest.mark.slow
def test_a_page_that_starts_before_its_server_waits_for_it(
    browser: Browser, repository: Path, tmp_path: Path
) -> None:
    port = str(*free_ports(1))
    with PageProcess(f"127.0.0.1:{port}", tmp_path / "page") as page:
        window = browser.new_page()
        window.goto(page.url)
        window.get_by_text("The server is gone.").wait_for(timeout=60_000)
        with ServerProcess(repository, tmp_path / "server", "--port", port):
            window.get_by_text("Connected to").wait_for(timeout=60_000)
        window.close()


@pytest.mark.slow
def test_nothing_is_loaded_or_read_for_a_crafted_request(server: ServerProcess, tmp_path: Path) -> None:
    """Addresses instead of uploads, and files of this machine: refused, and nobody is asked."""
    private = tmp_path / "private.png"
    private.write_bytes(PICTURE)
    with PageProcess(server.address, tmp_path / "page") as page:
        config = json.loads(fetch(f"{page.url}/config"))
        (picture,) = [
            each["id"] for each in config["components"] if each["props"].get("elem_id") == "fs-picture"
        ]
        (event,) = [
            each for each in config["dependencies"] if [picture, "change"] in map(list, each["targets"])
        ]
        for path in ("http://stranger.example/a.png", str(private)):
            crafted = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
            for way in ("run/predict", "queue/join"):
                body = {"data": [crafted, "grey", ""], "fn_index": event["id"], "session_hash": "crafted"}
                with pytest.raises(urllib.error.HTTPError) as failed:
                    fetch(f"{page.url}/gradio_api/{way}", json.dumps(body).encode())
                with failed.value:
                    assert failed.value.code >= 400
        for path in (f"/gradio_api/file={private}", "/gradio_api/file=http://stranger.example/"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                fetch(page.url + path)
            with refused.value:
                assert refused.value.code in (403, 404)
        assert page.connections() <= {"127.0.0.1", "::1", "localhost"}


def fetch(url: str, body: bytes | None = None) -> bytes:
    """Return what a GET answers, or a POST of JSON."""
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
    return content


def test_another_port_is_asked_for_where_this_one_is_taken(page: PageProcess, tmp_path: Path) -> None:
    port = page.url.rpartition(":")[2]
    with pytest.raises(AssertionError, match=r"cannot listen on 127\.0\.0\.1") as ended:
        PageProcess("127.0.0.1:1", tmp_path, "--port", port)
    assert "Traceback" not in str(ended.value)
