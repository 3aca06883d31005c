#!/usr/bin/env python3
"""Checks that every link within target/docs-site leads to a page and a place on it."""

import re
import sys
from html import unescape
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "target/docs-site"
# mdBook makes them; the links of the first are those of all pages.
SKIPPED = {"print.html", "404.html"}


def main() -> int:
    texts = {page: page.read_text(encoding="utf-8") for page in SITE.rglob("*.html")}
    links = failures = 0
    for page, text in texts.items():
        if page.name in SKIPPED:
            continue
        for link in map(unescape, re.findall(r'<a [^>]*href="([^"]+)"', text)):
            if re.match(r"[a-z]+:", link):
                continue
            links += 1
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists() or (anchor and f'id="{anchor}"' not in texts[target]):
                print(f"{page.relative_to(SITE)}: {link} leads nowhere")
                failures += 1
    print(f"{links} links in {len(texts)} pages, {failures} lead nowhere")
    return 1 if failures or not links else 0


if __name__ == "__main__":
    sys.exit(main())
