"""The page's small parts: bounded stores, the guard before the web framework, HTML from untrusted text."""

from __future__ import annotations

import asyncio
import base64
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foldserve.artifact.format import ModelMetadata
from foldserve.imaging import ImageSpec
from foldserve.serving.client.messages import Description, Label
from foldserve.ui import fragments
from foldserve.ui.answers import Answer
from foldserve.ui.corrections import Kept
from foldserve.ui.drawings import MAX_CHARACTERS, read_drawing
from foldserve.ui.errors import UiError
from foldserve.ui.examples import COUNT, Example, _choose
from foldserve.ui.guard import Guard
from foldserve.ui.occlusion import Occlusion
from foldserve.ui.page import Explanation
from foldserve.ui.picture_store import PictureStore
from foldserve.ui.server_connection import ServerStatus
from foldserve.ui.upload_folder import prune

EVIL = "<script>alert(1)</script>\"'&\u202e\x1b[31m"


def test_pictures_that_were_unused_the_longest_are_forgotten() -> None:
    store = PictureStore(max_bytes=100)
    first, second = store.add(b"1" * 40), store.add(b"2" * 40)
    assert store.add(b"1" * 40) == first
    third = store.add(b"3" * 40)
    assert store.get(first) == b"1" * 40
    assert store.get(third) == b"3" * 40
    with pytest.raises(UiError, match="choose it again"):
        store.get(second)
    alone = store.add(b"4" * 500)  # one is held whatever its size: uploads have a bound of their own
    assert len(store.get(alone)) == 500


def test_drawings_are_png_files_and_nothing_else() -> None:
    content = b"\x89PNG rest"
    assert read_drawing("data:image/png;base64," + base64.b64encode(content).decode()) == content
    bad: list[object] = [None, 3, "", "file:///etc/passwd", "data:text/html;base64,AAAA"]
    bad += ["data:image/png;base64," + "A" * MAX_CHARACTERS, "data:image/png;base64,%%%"]
    for address in bad:
        with pytest.raises(UiError, match="reload the page"):
            read_drawing(address)


def test_the_oldest_uploads_are_deleted(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / f"{number}" / "picture"
        path.parent.mkdir()
        path.write_bytes(bytes(10))
        os.utime(path, (number, number))
    prune(tmp_path, max_bytes=25)
    assert sorted(path.parent.name for path in tmp_path.rglob("picture")) == ["2", "3"]
    prune(tmp_path, max_files=1)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["3", "3/picture"]


def test_examples_are_of_each_class_in_turn_however_many_images_there_are() -> None:
    classes = np.repeat([2, 0, 1], [50_000, 3, 2])
    images = np.arange(len(classes), dtype=np.uint8).reshape(-1, 1, 1, 1)
    chosen = _choose(images, np.eye(3)[classes])
    assert [each.index for each in chosen] == [0, 1, 2, 0, 1, 2, 0, 2, 2, 2, 2, 2]
    assert len({each.png for each in chosen}) == COUNT


class TestGuard:
    """Requests to a guarded application that reads its body and answers its size."""

    @staticmethod
    def ask(
        tmp_path: Path,
        path: str = "/",
        host: str = "127.0.0.1:7860",
        body: tuple[bytes, ...] = (),
        **more: str,
    ) -> tuple[int, dict[str, str], str]:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            size, is_open = 0, True
            while is_open:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                size += len(message["body"])
                is_open = message["more_body"]
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": str(size).encode()})

        sent: list[Any] = []
        parts = list(body) or [b""]
        messages = [
            {"type": "http.request", "body": part, "more_body": number + 1 < len(parts)}
            for number, part in enumerate(parts)
        ]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", host.encode())] + [(name.encode(), text.encode()) for name, text in more.items()]
        guard = Guard(app, uploads=tmp_path, max_upload_bytes=1000, only_loopback=True)
        asyncio.run(guard({"type": "http", "path": path, "headers": headers}, receive, send))
        if not sent:
            return 0, {}, ""
        found = {name.decode(): text.decode() for name, text in sent[0]["headers"]}
        return sent[0]["status"], found, sent[1]["body"].decode()

    def test_browsers_are_told_to_load_nothing_from_elsewhere(self, tmp_path: Path) -> None:
        status, headers, _ = self.ask(tmp_path)
        assert status == 200
        policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        allowed = {source for sources in policy.values() for source in sources.split()}
        assert allowed <= {"'self'", "'none'", "'unsafe-inline'", "'unsafe-eval'", "data:", "blob:"}

    @pytest.mark.parametrize(
        "host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST", "127.0.0.2:80"]
    )
    def test_this_machines_names_are_answered(self, host: str, tmp_path: Path) -> None:
        assert self.ask(tmp_path, host=host)[0] == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example:7860", "", "[::1].evil.example"]
    )
    def test_other_names_are_refused(self, host: str, tmp_path: Path) -> None:
        status, _, text = self.ask(tmp_path, host=host)
        assert status == 421
        assert "http://127.0.0.1" in text

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "null", "http://127.0.0.1:7861", "http://localhost:7860", ""]
    )
    def test_web_pages_of_other_origins_are_refused(self, origin: str, tmp_path: Path) -> None:
        """Each could send files and questions here through the browser of somebody who visits it."""
        for path in ("/gradio_api/upload", "/gradio_api/run/classify", "/"):
            status, _, text = self.ask(tmp_path, path, origin=origin)
            assert status == 403
            assert "web pages of another origin" in text

    @pytest.mark.parametrize("host", ["127.0.0.1:7860", "[::1]:7860"])
    def test_the_page_itself_may_upload(self, host: str, tmp_path: Path) -> None:
        assert self.ask(tmp_path, "/gradio_api/upload", host, origin=f"http://{host}")[0] == 200

    @pytest.mark.parametrize(
        "path",
        [
            "/gradio_api/file=http://a.example/",
            "/gradio_api/proxy=http://a.example/",
            "/gradio_api/queue/join",
        ],
    )
    def test_nothing_is_loaded_for_a_caller(self, path: str, tmp_path: Path) -> None:
        assert self.ask(tmp_path, path)[0] == 403

    def test_large_bodies_are_refused_before_and_while_they_are_read(self, tmp_path: Path) -> None:
        assert self.ask(tmp_path, body=(bytes(900),))[2] == "900"
        more = {"content-length": "1000000"}
        assert self.ask(tmp_path, body=(b"",), **more)[0] == 413
        assert self.ask(tmp_path, body=(bytes(50_000), bytes(50_000)))[0] == 0, "cut off"


class Tags(HTMLParser):
    """Collects the tags of a fragment, and checks that all are closed."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.said = ""
        self.feed(fragment)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, *_: object) -> None:
        self.names.append(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said += data


def evil_answer(temperature: float = 1.5) -> Answer:
    metadata = ModelMetadata((EVIL,), (0.5,), (0.5,), ImageSpec("L", 4, 4, 4), temperature=temperature)
    description = Description(EVIL, EVIL, EVIL, EVIL, metadata)
    return Answer([Label(EVIL, 0, 0.75)], description, 12.34, 0.1, 2.5)


def all_fragments() -> list[str]:
    occlusion = Occlusion(np.eye(5), 0.75, 0.25, 3, 222, 0.5)
    return [
        fragments.banner(ServerStatus(is_reached=False, trouble=EVIL), EVIL),
        fragments.banner(ServerStatus(is_reached=True, trouble=EVIL), EVIL),
        fragments.banner(ServerStatus(is_reached=True), EVIL),
        fragments.alert(EVIL),
        fragments.answer(evil_answer(), b"png"),
        fragments.answer(evil_answer(), None),
        fragments.explanation(Explanation(EVIL, occlusion, b"png")),
        fragments.examples([(Example(b"png", 0), EVIL)]),
        fragments.kept(Kept(Path("kept") / EVIL, 2, EVIL)),
    ]


def test_text_from_outside_is_escaped_everywhere() -> None:
    for fragment in all_fragments():
        tags = Tags(fragment)
        assert "script" not in tags.names
        assert "alert(1)" in tags.said, fragment
        assert "\u202e" not in fragment
        assert "\x1b" not in fragment


def test_answers_say_all_that_was_asked_for() -> None:
    said = Tags(fragments.answer(evil_answer(), None)).said
    for text in (
        "75.0%",
        "12.3 ms",
        "0.10 ms in the queue",
        "2.50 ms",
        "calibrated, temperature 1.5",
        "SHA-256",
    ):
        assert text in said
    assert "not calibrated" in Tags(fragments.answer(evil_answer(1.0), None)).said


def test_explanations_say_in_words_what_they_show() -> None:
    strong = Occlusion(np.eye(5) * [[1, 0, 0, 0, 0]], 0.75, 0.25, 3, 222, 0.5)
    fragment = fragments.explanation(Explanation("cat", strong, b"png"))
    assert "cat depends most on the upper left" in Tags(fragment).said
    assert "falls from 75.0% to 25.0%" in Tags(fragment).said
    assert (
        'alt="The picture in grey as the network sees it, orange where it matters; most in the upper'
        in fragment
    )
    nothing = Occlusion(np.zeros((5, 5)), 0.75, 0.75, 2, 26, 0.5)
    assert "Hiding no single part" in fragments.explanation(Explanation("cat", nothing, b"png"))
