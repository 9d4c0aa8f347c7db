"""The page of all error messages is made from the source, and is current."""

from pathlib import Path

from potstill.error_page import PAGE, messages, page

RAISES = """
class OwnError(PotstillError):
    pass

class Further(OwnError):
    pass

def f(name, error):
    raise PotstillError(f"There is no {name}: " "check `it`.")
    raise PotstillError(f"There is no {name}: " "check `it`.")  # once on the page
    raise Further("a " + "b " + name) from error
    raise PotstillError(message)
    raise ValueError("not potstill's")
"""


def test_the_page_is_current() -> None:
    """If this fails, a message has changed: `make errors` writes the page anew."""
    assert PAGE.read_text(encoding="utf-8") == page(messages())


def test_messages_are_found_in_the_source(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "door.py").write_text(RAISES)
    found = messages(tmp_path)
    assert [(one.module, one.text) for one in found] == [
        ("room/door", "There is no …: check `it`."),
        ("room/door", "a b …"),
    ]
    assert page(found).endswith("## room/door\n\n- ``There is no …: check `it`.``\n- `a b …`\n")
