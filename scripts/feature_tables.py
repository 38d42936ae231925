"""Write the tables of documentation/reference/nnunet_features.md from the markers `feature(section, text)` on tests.

With `--check` the script only compares page and markers, and exits with status 1 if the page is out of date.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "documentation" / "reference" / "nnunet_features.md"
# a table between two comments, of which the first names the table's section
TABLE = re.compile(r"(<!-- features: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def features(file: Path) -> Iterator[tuple[str, str, str]]:
    """Yield section, text and test name for each marker in a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.feature":
                    section, text = map(ast.literal_eval, decorator.args)
                    yield section, text, node.name


def tables() -> dict[str, str]:
    """Return the Markdown of each section's table."""
    rows: dict[str, dict[str, list[str]]] = {}
    for file in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        link = f"../../{file.relative_to(REPOSITORY).as_posix()}"
        for section, text, name in features(file):
            rows.setdefault(section, {}).setdefault(text, []).append(f"[`{name}`]({link})")
    head = "\n| feature | test |\n| --- | --- |\n"
    return {
        section: head + "".join(f"| {text} | {', '.join(tests)} |\n" for text, tests in of_section.items()) + "\n"
        for section, of_section in rows.items()
    }


def main() -> int:
    """Write or check the page."""
    written = tables()
    page = PAGE.read_text(encoding="utf-8")
    sections = {section for _, section, _ in TABLE.findall(page)}
    if sections != set(written):
        different = ", ".join(sorted(sections ^ set(written)))
        print(f"{PAGE}: sections exist only in the page or only in tests' markers: {different}. Add or remove them")
        return 1
    generated = TABLE.sub(lambda table: table[1] + written[table[2]] + table[3], page)
    if "--check" not in sys.argv:
        PAGE.write_text(generated, encoding="utf-8")
    elif generated != page:
        print(f"{PAGE} differs from the tests' markers: run `make docs`")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
