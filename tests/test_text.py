"""Untrusted text: whatever it holds, its escaped form can be sent, logged and printed."""

from hypothesis import given
from hypothesis import strategies as st

from foldserve.text import escaped, is_legible, join_first, join_names, legible, quote

# Halves of surrogate pairs too: what Python makes of bytes in a file's name that are no UTF-8.
TEXTS = st.text(st.characters(codec=None), max_size=50)


@given(text=TEXTS)
def test_escaped_text_can_be_sent_and_printed(text: str) -> None:
    for result in (legible(text), legible(text * 200), quote(text), join_names([text, text])):
        assert is_legible(result)
        assert len(result.encode()) < 8000, "it fits into a status's message"


@given(text=TEXTS.filter(is_legible))
def test_legible_text_is_unchanged(text: str) -> None:
    assert legible(text) == text


def test_words_of_any_language_are_legible() -> None:
    for text in ("café", "猫", "\u0646\u200c\u0645", "\u3000", "\u00a0", "👩\u200d🔬", 'a "quoted" \\ name'):
        assert is_legible(text)


def test_bytes_that_are_not_utf_8_are_escaped() -> None:
    assert legible(b"caf\xe9\n\xff".decode(errors="surrogateescape")) == "caf\\xe9\\x0a\\xff"
    assert legible("\u2028\u202e\ud800") == "\\u2028\\u202e\\ud800"


@given(text=TEXTS)
def test_escaped_text_is_printable_and_keeps_what_was_printable(text: str) -> None:
    assert escaped(text).isprintable()
    assert escaped(text) == text or not text.isprintable()


def test_escaped_bytes_that_are_no_utf_8_are_shown_as_such() -> None:
    assert escaped(b"caf\xe9\n".decode(errors="surrogateescape") + "\u2028\ud800") == r"caf\xe9\n\u2028\ud800"


def test_joined_texts_stay_as_they_are_and_the_rest_is_counted() -> None:
    assert join_first(["2 .txt", "1 .csv"]) == "2 .txt, 1 .csv"
    assert join_first(["a"] * 1003, "; ") == "a; a; a and 1,000 more"
