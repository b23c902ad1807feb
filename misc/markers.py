"""Tables of the documentation, between the markers <!-- PREFIX:NAME --> and <!-- /PREFIX:NAME -->."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines])


def render(prefix: str, pages: Mapping[Path, Mapping[str, str]], check: bool) -> bool:
    """Write the tables of each page, by name; to check, write nothing. Whether a page differs in a check."""
    marker = re.compile(rf"(<!-- {prefix}:(\S+) -->\n).*?(<!-- /{prefix}:\2 -->)", re.DOTALL)
    differ = []
    for page, tables in pages.items():
        text = page.read_text()
        rendered = marker.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", text)  # noqa: B023
        if rendered != text:
            differ.append(page.name)
            if not check:
                page.write_text(rendered)
    print("\n".join(f"{'outdated' if check else 'wrote'}: {name}" for name in differ) or "up to date")
    return check and bool(differ)
