"""Write documentation/reference/commands.md from the commands' own help.

With `--check` the script only compares page and help, and exits with status 1 if the page is out of date.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from nnunet_mamba_mis.cli.main import COMMANDS

PAGE = Path(__file__).resolve().parents[1] / "documentation" / "reference" / "commands.md"
HEAD = """# Commands

`make docs` writes this page from the commands' `--help`.

Exit status: 0 for success, 1 for a problem that the message explains, 2 for wrong arguments, 130 after Ctrl-C.
"""


def commands(group: Mapping[str, tuple[str, str]], prefix: str = "mamba_mis") -> Iterator[tuple[str, ModuleType]]:
    """Yield the full name and the module of each command; commands of a group follow the group."""
    for name, (module_name, _) in group.items():
        module = importlib.import_module(module_name)
        yield f"{prefix} {name}", module
        if hasattr(module, "COMMANDS"):
            yield from commands(module.COMMANDS, f"{prefix} {name}")


def section(words: str, module: ModuleType) -> str:
    """Return the Markdown of a command: its description, then a table of its options."""
    text = f"\n## `{words}`\n\n{_escaped(module.__doc__ or '').strip()}\n"
    if not hasattr(module, "add_arguments"):
        return text
    parser = argparse.ArgumentParser(add_help=False)
    module.add_arguments(parser)
    if not parser._actions:
        return text
    rows = [_row(action, _required(action, parser)) for action in parser._actions]
    return f"{text}\n| option | required | meaning |\n| --- | --- | --- |\n" + "".join(rows)


def _required(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Return "yes" for a required option, the alternatives if one of several options is required, or an empty text."""
    for group in parser._mutually_exclusive_groups:
        if group.required and action in group._group_actions:
            others = [name for other in group._group_actions if other is not action for name in other.option_strings]
            return f"or `{', '.join(others)}`"
    return "yes" if action.required else ""


def _row(action: argparse.Action, required: str) -> str:
    """Return a row of the table: names and value, whether the option is required, and its help."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    if action.nargs == "+":
        value = f"{value} …"
    # a flag takes no value
    names = ", ".join(action.option_strings)
    shown = names if action.nargs == 0 else f"{names} {value}".strip()
    meaning = (action.help or "") % vars(action)
    cells = (f"`{shown}`", required, _escaped(meaning))
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _escaped(text: str) -> str:
    """Escape characters that Markdown reads as markup, except in code."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"[*_\[]", r"\\\g<0>", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def main() -> int:
    """Write or check the page."""
    page = HEAD + "".join(section(words, module) for words, module in commands(COMMANDS))
    if "--check" not in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page:
        print(f"{PAGE} differs from the commands' help: run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
