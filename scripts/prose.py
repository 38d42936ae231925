"""Check English: report phrases that CONTRIBUTING.md replaces, and mistakes that proselint finds.

Without options, the script reads hand-written Markdown: files in the repository's root, and files and notebooks in
documentation/. `--code` adds comments, docstrings and messages in Python, comments in C++ and shell scripts, and
documentation generated from code.
If files are named, the script reads only these, in full.

The exit status is 1 if there are findings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from proselint.checks import __register__ as general_checks
from proselint.config import Config
from proselint.registry import CheckRegistry
from proselint.registry.checks import Check, CheckFlags
from proselint.registry.checks.engine import Fast, Padding
from proselint.registry.checks.types import PreferredForms
from proselint.tools import LintFile

REPOSITORY = Path(__file__).resolve().parents[1]
WORDS = REPOSITORY / "scripts" / "prose_words.txt"
FOLDERS = ("documentation", "nnunet_mamba_mis", "tests", "scripts", "performance", "csrc")
# generated from the help texts in the code
GENERATED = {"documentation/reference/commands.md"}
# records of runs keep the wording of the version that wrote them; this script's tests contain the phrases it reports
EXEMPT = re.compile(
    r"documentation/results/(\w+/)+report\.md$|tests/benchmark/report_words\.md$|tests/scripts/test_prose\.py$"
)

# proselint's checks that suit technical English. Left out: typography (curly quotes), dates (long forms), and
# "uncomparables", which takes as long as all others together
GENERAL = (
    "archaism",
    "cliches",
    "hedging",
    "lexical_illusions",
    "malapropisms",
    "misc",
    "mondegreens",
    "needless_variants",
    "nonwords",
    "oxymorons",
    "redundancy",
    "weasel_words",
)
# these report every "step dependent" as a missing hyphen, and every deadline as a cliché
NOT_GENERAL = ("misc.phrasal_adjectives", "redundancy.misc.after_the_deadline")
# "the the" is a repetition; "1 1", "Test test" and columns of a table are not
REPEATED = re.compile(r"'([^\W\d]+)(?: |\s*\n\s*)\1'")

# replaces everything that is not prose; neither a space nor part of a word, so that no phrase or word matches across it
FILLER = "|"
MARKDOWN_CODE = re.compile(
    r"^(?P<fence>```+|~~~+).*?^(?P=fence)[^\S\n]*$"  # code blocks
    r"|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"  # inline code
    r"|<!--.*?-->|</?\w[^>\n]*>"  # HTML
    r"|(?<=\])\([^)\n]*\)|https?://\S+"  # addresses
    r'|"[^"\n]+(?:\n[^"\n]+)?"',  # quotations: names, and examples of what not to write
    re.DOTALL | re.MULTILINE,
)
# a line of a cell in the JSON of a notebook
SOURCE_LINE = re.compile(r'\s+("(?:\\.|[^"\\])*"),?$')
MARKDOWN_TABLE_OF_FEATURES = re.compile(r"(?<=-->\n)\n\| feature.*?(?=<!-- end)", re.DOTALL)
# prose in source code: comments, and strings of several words
STRING = r"""\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'"""
PYTHON = re.compile(rf"#[^\n]*|[rbfRBF]*(?:{STRING})", re.DOTALL)
CPP = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
SHELL = re.compile(r"(?:^|(?<=\s))#[^\n]*", re.MULTILINE)
CODE = {".py": PYTHON, ".h": CPP, ".cpp": CPP, ".sh": SHELL}
# MARKS: delimiters of comments and strings. NOT_WORDS: code in backticks, format fields, escapes, addresses
MARKS = re.compile(r"^[rbfRBF]*(?:\"{3}|'{3}|[\"'])|(?:\"{3}|'{3}|[\"'])$|^[/#*]+|\*/$|(?<=\n)[ \t]*(?:\*|//)")
NOT_WORDS = re.compile(r"``?[^`\n]+``?|\{[^{}\n]*\}|\\n|https?://\S+")


def phrases() -> Iterator[tuple[str, str, str]]:
    """Yield the rule, regular expression and replacement of each line of the word list."""
    rule = ""
    for number, line in enumerate(WORDS.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("["):
            rule = line.strip("[]")
        elif line and not line.startswith("#"):
            pattern, arrow, replacement = line.partition(" => ")
            if not arrow or not rule:
                raise SystemExit(f"{WORDS}:{number}: expected [rule] or PHRASE => REPLACEMENT, found {line}")
            yield rule, pattern, replacement


def register_checks() -> Config:
    """Register proselint's checks and ours, and return the configuration that runs all of them."""
    registry = CheckRegistry()
    registry.register_many(
        tuple(
            check
            for check in general_checks
            if any(map(check.matches_partial, GENERAL)) and not any(map(check.matches_partial, NOT_GENERAL))
        )
    )
    for rule, pattern, replacement in phrases():
        # a space in a phrase also matches a single line break, but not the end of a paragraph
        spaced = pattern.replace(" ", r"(?:[ \t]+|[ \t]*\n[ \t]*)")
        end = "" if pattern[-1] in ".]" else r"\b"
        registry.register(
            Check(
                check_type=PreferredForms({rf"\b(?:{spaced}){end}": replacement}, Padding.RAW),
                engine=Fast(),
                path=f"words.{rule}",
                message="'{1}': {0}",
                flags=CheckFlags(allow_quotes=True),
            )
        )
    return Config(max_errors=1000, checks=dict.fromkeys(("words", *GENERAL), True))


def markdown_prose(text: str, generated: bool) -> str:
    """Replace code, addresses and quotations in Markdown with fillers."""
    if not generated:
        text = MARKDOWN_TABLE_OF_FEATURES.sub(_filled, text)
    return MARKDOWN_CODE.sub(_filled, text)


def notebook_prose(text: str) -> str:
    """Return the Markdown cells of a notebook, each line at its line number in the file."""
    lines, is_markdown = [], False
    for line in text.splitlines():
        if '"cell_type"' in line:
            is_markdown = '"markdown"' in line
        source = SOURCE_LINE.match(line) if is_markdown else None
        lines.append(json.loads(source[1]).rstrip("\n") if source else FILLER)
    return markdown_prose("\n".join(lines), generated=True)


def code_prose(text: str, pattern: re.Pattern[str]) -> str:
    """Return comments and strings at their positions; adjacent ones form one text."""
    parts, end = [], 0
    for found in pattern.finditer(text):
        between = text[end : found.start()]
        parts.append(between if end and not between.strip() else _filled(between))
        words = MARKS.sub(lambda mark: " " * len(mark[0]), found[0])
        is_prose = " " in words.strip()
        parts.append(NOT_WORDS.sub(_filled, words) if is_prose else _filled(words))
        end = found.end()
    return "".join([*parts, _filled(text[end:])])


def _filled(code: re.Match[str] | str) -> str:
    """Replace the text of each line with a filler."""
    return re.sub(r"[^\n]+", FILLER, code if isinstance(code, str) else code[0])


def prose(file: Path, generated: bool) -> str:
    """Return a file's prose, each word on its original line."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        text = notebook_prose(text)
    elif file.suffix in CODE:
        text = code_prose(text, CODE[file.suffix])
    else:
        text = markdown_prose(text, generated)
    # no phrase spans an empty line
    return re.sub(r"^$", FILLER, text, flags=re.MULTILINE)


def files(code: bool) -> Iterator[Path]:
    """Yield the repository's files that contain prose."""
    yield from sorted(REPOSITORY.glob("*.md"))
    for folder in FOLDERS if code else FOLDERS[:1]:
        for file in sorted((REPOSITORY / folder).rglob("*")):
            name = file.relative_to(REPOSITORY).as_posix()
            is_text = file.suffix in (".md", ".ipynb") and (code or name not in GENERATED)
            if (is_text or (code and file.suffix in CODE)) and not EXEMPT.search(name):
                yield file


def findings(file: Path, config: Config, generated: bool) -> Iterator[str]:
    """Yield the location, message and rule of each finding."""
    name = file.relative_to(REPOSITORY) if file.is_relative_to(REPOSITORY) else file
    for result in LintFile(str(file), prose(file, generated)).lint(config):
        message = result.check_result.message
        rule = result.check_result.check_path.removeprefix("words.")
        if rule != "lexical_illusions" or REPEATED.search(message):
            yield f"{name}:{result.pos[0]}: {' '.join(message.split())} [{rule}]"


def main() -> int:
    """Print each finding with its location."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="files to read; default: the repository's")
    parser.add_argument("--code", action="store_true", help="also read code and documentation generated from it")
    arguments = parser.parse_args()
    config = register_checks()
    generated = arguments.code or bool(arguments.files)
    checked = map(Path.resolve, arguments.files or files(arguments.code))
    found = [line for file in checked for line in findings(file, config, generated)]
    print("".join(f"{line}\n" for line in found), end="")
    if found:
        print(f"{len(found)} phrases to replace: see English in CONTRIBUTING.md, and {WORDS.relative_to(REPOSITORY)}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
