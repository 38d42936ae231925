"""Names in pages, tables and the terminal: shown literally, never interpreted."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from nnunet_mamba_mis.utils.text import (
    code_block,
    for_file_name,
    for_markdown,
    for_spreadsheet,
    for_terminal,
    markdown_table,
    one_line,
    shortened,
)

MARKUP = st.text(st.sampled_from(list("ab1 _*`~|<>[]()!#&;:\\-+=.$'\"/?^{}@\n\t")), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\rb\nc\td", "a\\rb\\nc\\td"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b\x9b", "a\\u2028b\\x9b"),
        ("bytes \udcff", "bytes \\udcff"),
        ("é 患者 😀 \\n", "é 患者 😀 \\n"),
        ("نمی\u200cخواهم", "نمی\u200cخواهم"),
    ],
)
def test_invisible_characters_are_escapes_and_letters_stay(name, shown):
    assert one_line(name) == shown
    assert shortened([name, "b"]) == f"{shown}, b"


def test_lines_of_a_message_stay_lines():
    assert for_terminal("a\x1b[0m\n  b") == "a\\x1b[0m\n  b"


def shown_by_markdown(source: str) -> list[str]:
    """Return the text of each paragraph, heading, item or cell; fail on anything but plain text."""
    parts = [token for token in MarkdownIt().enable(["table", "strikethrough"]).parse(source) if token.type == "inline"]
    assert {child.type for part in parts for child in part.children} <= {"text", "text_special"}
    return ["".join(child.content for child in part.children) for part in parts]


@given(MARKUP)
@example("[x](http://a)")
@example("[x]: http://a")
@example("<b>&lt;")
@example("12. a")
@example("- - -")
@example("a__b__")
def test_markdown_shows_names_literally(name):
    shown = one_line(name).strip()
    source = for_markdown(name)
    if shown:
        assert (
            shown_by_markdown(source) == shown_by_markdown(f"# {source}") == shown_by_markdown(f"- {source}") == [shown]
        )
        assert shown_by_markdown(f"see {source} (fold 0)") == [f"see {shown} (fold 0)"]
        assert shown_by_markdown(markdown_table(["a", "b"], [[source, "1"]])) == ["a", "b", shown, "1"]


def test_ordinary_names_stay_readable_in_markdown():
    for text in ("nnUNetTrainer_2epochs__nnUNetPlans__2d", "[0.1, 0.2]", "< 0.001", "-0.012 ± 0.1"):
        assert for_markdown(text) == text


def test_code_cannot_end_its_block():
    (token,) = MarkdownIt().parse(code_block("cd 'a\n```\nb'", "bash"))
    assert token.content == "cd 'a\n```\nb'\n"


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@a", "\t=1", "'=1", "plain", ""])
def test_no_cell_is_a_formula_and_removing_the_apostrophe_restores_the_name(name):
    cell = for_spreadsheet(name)
    assert not cell.startswith(("=", "+", "-", "@", "\t"))
    assert cell.removeprefix("'") == name


def test_names_of_files_are_short_plain_and_distinct():
    names = ["Dataset007_Discs on imagesTs_far (folds 0+1)", "a/b", "a:b", "a\nb", "é" * 300, "é" * 301, "\udcff"]
    made = [for_file_name(name) for name in names]
    assert made[0] == names[0].replace(" ", "_")
    assert len(set(made)) == len(names)
    assert all(len(name.encode()) < 200 and not set(name) & set("/:\n\udcff") for name in made)
