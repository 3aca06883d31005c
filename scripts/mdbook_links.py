#!/usr/bin/env python3
"""Preprocessor of mdBook for links that leave docs/.

The pages link to sources beside them, such as `../src/plan/mod.rs`, which a site does not have.
With `git-repository-url` in book.toml, such a link leads to the repository. Without it, only the
text of the link remains. The README becomes the first page.
"""

import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s#]*)(#[^()\s]*)?\)")


def rewritten(content: str, page: str, repository: str | None) -> str:
    """Returns the page's content. `page` is its path in the repository, such as `docs/why.md`."""

    def link(match: re.Match) -> str:
        bang, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if path == "README.md":
            below = posixpath.relpath("docs", posixpath.dirname(page) or ".")
            return f"{bang}[{text}]({below}/index.md{anchor})"
        if path == "docs/SUMMARY.md":
            # A site has it beside each page.
            return text
        if path.startswith("docs/"):
            # mdBook makes `index.html` of a README.
            path = re.sub(r"(^|/)README\.md$", r"\1index.md", path)
            relative = posixpath.relpath(path, posixpath.dirname(page) or "docs")
            return f"{bang}[{text}]({relative}{anchor})"
        if repository:
            return f"{bang}[{text}]({repository.rstrip('/')}/blob/HEAD/{path}{anchor})"
        return text

    # Code stays as it is. A code span in the text of a link stays inside of the link.
    code: list[str] = []

    def hide(match: re.Match) -> str:
        code.append(match[0])
        return f"\0{len(code) - 1}\0"

    hidden = re.sub(r"^\s*```.*?^\s*```|`[^`\n]+`", hide, content, flags=re.M | re.S)
    return re.sub(r"\0(\d+)\0", lambda match: code[int(match[1])], LINK.sub(link, hidden))


def visit(items: list, repository: str | None) -> None:
    for item in items:
        if not isinstance(item, dict) or "Chapter" not in item:
            continue
        chapter = item["Chapter"]
        if chapter.get("source_path"):
            page = posixpath.join("docs", chapter["source_path"])
            chapter["content"] = rewritten(chapter["content"], page, repository)
        visit(chapter["sub_items"], repository)


def main() -> int:
    if sys.argv[1:2] == ["supports"]:
        return 0
    context, book = json.load(sys.stdin)
    repository = context["config"].get("output", {}).get("html", {}).get("git-repository-url")
    items = book.get("items", book.get("sections"))
    visit(items, repository)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    items.insert(
        0,
        {
            "Chapter": {
                "name": "unstale",
                "content": rewritten(readme, "README.md", repository),
                "number": None,
                "sub_items": [],
                "path": "index.md",
                "source_path": None,
                "parent_names": [],
            }
        },
    )
    json.dump(book, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
