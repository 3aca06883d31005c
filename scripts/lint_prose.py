#!/usr/bin/env python3
"""Holds the prose of the documentation and of doc comments to docs/STYLE.md.

    scripts/lint_prose.py                  everything, as `make lint` does
    scripts/lint_prose.py PATH...          these files or folders

Rules:
    sentence-length   a sentence has at most 25 words; a code span counts as one word
    punctuation       a sentence has at most one colon or semicolon
    opening           no sentence begins with Of, Nor, Who, What, Whoever, Whether
    term              no term that docs/GLOSSARY.md replaces (its last column, in quotes)
    line-width        a line of text or of a comment has at most 100 characters
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Iterator, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = ROOT / "docs/GLOSSARY.md"
CHECKED = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "clients", "examples", "src"]
# `make bench` writes this page.
GENERATED = ["docs/bench/results.md"]
SKIPPED_FOLDERS = {"target", "node_modules", "build", ".venv"}

MOST_WORDS = 25
MOST_COLUMNS = 100
OPENINGS = {"Of", "Nor", "Who", "What", "Whoever", "Whether"}
ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "vs.", "cf.", "approx.")

# Stand-ins of the same length, so that places in the text stay true: a code span is one word, and
# markup is nothing.
CODE, NOTHING = "\x01", "\x02"


class Problem(NamedTuple):
    path: str
    line: int
    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


class Unit(NamedTuple):
    """A piece of text that no sentence leaves: a paragraph, a list item, a heading or a cell."""

    kind: str
    text: str
    lines: list[tuple[int, int]]

    def line_at(self, offset: int) -> int:
        return [line for begin, line in self.lines if begin <= offset][-1]


def units(numbered: list[tuple[int, str]]) -> Iterator[Unit]:
    """Splits Markdown into its units. Code blocks, HTML and link definitions are left out."""
    paragraph: list[tuple[int, str]] = []
    fence = ""
    comment = False
    is_table = False

    def flush() -> Iterator[Unit]:
        if paragraph:
            yield joined("text", paragraph)
            paragraph.clear()

    for number, line in numbered:
        stripped = line.strip()
        if comment:
            comment = "-->" not in stripped
            continue
        if fence:
            if stripped.startswith(fence) and not stripped.strip(fence[0]):
                fence = ""
            continue
        opening = re.match(r"(?:[-*+]\s+|\d+[.)]\s+|>\s*)*(```+|~~~+)", stripped)
        if opening:
            yield from flush()
            fence = opening[1]
            continue
        if stripped.startswith("<!--"):
            yield from flush()
            comment = "-->" not in stripped
            continue
        quoted = re.sub(r"^(>\s*)+", "", stripped)
        is_row = quoted.startswith("|")
        if not quoted or re.match(r"\[[^\]]+\]:\s|</?\w[^>]*>$|-{3,}$|\* \* \*$", quoted):
            yield from flush()
        elif is_row:
            yield from flush()
            if not re.fullmatch(r"[|:\s-]+", quoted):
                for cell in re.split(r"(?<!\\)\|", quoted.strip("|")):
                    kind = "cell" if is_table else "heading"
                    yield joined(kind, [(number, cell.replace("\\|", " ").strip())])
        elif re.match(r"#{1,6}\s", quoted):
            yield from flush()
            yield joined("heading", [(number, quoted.lstrip("#").strip())])
        elif not paragraph and line.startswith("    ") and not re.match(r"[-*+\d]", stripped):
            # An indented line after a blank one: part of a list item, since our pages fence code.
            paragraph.append((number, quoted))
        else:
            item = re.match(r"(?:[-*+]|\d+[.)])\s+", quoted)
            if item:
                yield from flush()
                quoted = quoted[item.end() :]
            paragraph.append((number, quoted))
        is_table = is_row
    yield from flush()


def joined(kind: str, numbered: list[tuple[int, str]]) -> Unit:
    text, lines = "", []
    for number, line in numbered:
        lines.append((len(text), number))
        text += line + " "
    return Unit(kind, text.rstrip(), lines)


def bare(text: str) -> str:
    """Replaces code spans and markup by stand-ins of the same length."""

    def code(match: re.Match) -> str:
        return CODE * len(match[0])

    def nothing(match: re.Match) -> str:
        return NOTHING * len(match[0])

    def link(match: re.Match) -> str:
        return NOTHING + match[1] + NOTHING * (len(match[0]) - len(match[1]) - 1)

    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", code, text)
    text = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\([^()]*\)[^()]*)*(?:\s\"[^\"]*\")?\)", link, text)
    text = re.sub(r"\[([^\[\]]*)\](?:\[[^\[\]]*\])?", link, text)
    text = re.sub(r"<https?://[^>]*>|https?://\S+", code, text)
    text = re.sub(r"</?\w+[^>]*>", nothing, text)
    return re.sub(r"\*+(?=\S)|(?<=\S)\*+", nothing, text)


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yields each sentence of a bare text, with its offset."""
    begin = 0
    # The program's name keeps its small letter at the beginning of a sentence.
    ends = rf"[.!?][{NOTHING}\"')\]”]*\s+(?=[{NOTHING}\"'(\[“]*(?:[A-Z0-9{CODE}]|unstale\b))"
    for end in re.finditer(ends, text):
        if text[: end.start() + 1].lower().endswith(ABBREVIATIONS):
            continue
        yield begin, text[begin : end.end()].rstrip()
        begin = end.end()
    if text[begin:].strip():
        yield begin, text[begin:].rstrip()


def words(sentence: str) -> int:
    return sum(
        1
        for word in sentence.replace(NOTHING, "").split()
        if any(char.isalnum() or char == CODE for char in word)
    )


def stops(sentence: str) -> int:
    """Counts colons and semicolons. The colon after a label that an item begins with is free."""
    label = rf"^(?:{CODE}+|{NOTHING}+[^{NOTHING}:]+:?{NOTHING}+):?\s"
    return len(re.findall(rf"[:;](?=[\s{NOTHING}]|$)", re.sub(label, " ", sentence)))


def glossary_terms(page: str) -> list[str]:
    terms = []
    for row in page.splitlines():
        cells = row.strip().strip("|").split("|")
        if row.startswith("|") and len(cells) == 3:
            terms += re.findall(r'"([^"]+)"', cells[2])
    return terms


def term_pattern(terms: list[str]) -> re.Pattern:
    alternatives = "|".join(r"\s+".join(map(re.escape, term.split())) for term in terms)
    return re.compile(rf"\b(?:{alternatives})s?\b", re.IGNORECASE)


def prose_problems(
    path: str, numbered: list[tuple[int, str]], terms: re.Pattern
) -> Iterator[Problem]:
    for unit in units(numbered):
        text = bare(unit.text)
        for offset, sentence in sentences(text):
            original = unit.text[offset : offset + len(sentence)]
            line = unit.line_at(offset + len(sentence) - len(sentence.lstrip(NOTHING + " ")))

            def problem(rule: str, finding: str) -> Problem:
                return Problem(path, line, rule, f"{finding}: {original}")

            if (count := words(sentence)) > MOST_WORDS:
                yield problem("sentence-length", f"{count} words, at most {MOST_WORDS}")
            # In a cell, semicolons separate phrases.
            if unit.kind == "text" and (count := stops(sentence)) > 1:
                yield problem("punctuation", f"{count} colons or semicolons, at most one")
            # A question may begin so, and a phrase in a cell is no sentence.
            plain = sentence.replace(NOTHING, "")
            first = re.match(r"[\"'(“]*(\w+)", plain)
            is_sentence = unit.kind == "text" or (unit.kind == "cell" and plain.endswith("."))
            if is_sentence and first and first[1] in OPENINGS and not plain.endswith("?"):
                yield problem("opening", f"begins with `{first[1]}`")
            # A term in quotes is spoken about, not used.
            unquoted = re.sub(r"\"[^\"]*\"|“[^”]*”", " ", plain)
            for found in terms.finditer(unquoted):
                yield problem("term", f"`{found[0]}` (docs/GLOSSARY.md)")


def check_markdown(path: str, text: str, terms: re.Pattern) -> Iterator[Problem]:
    numbered = list(enumerate(text.splitlines(), 1))
    fence = False
    for number, line in numbered:
        if re.match(r"\s*(```|~~~)", line):
            fence = not fence
        # What a program prints is shown as it is. A row, a heading and a link cannot be wrapped.
        can_wrap = not fence and not re.match(r"\s*(\||#|\[[^\]]+\]:)", line)
        if can_wrap and len(line) > MOST_COLUMNS and not has_one_word(line):
            yield Problem(path, number, "line-width", f"{len(line)} characters: {line.strip()}")
    yield from prose_problems(path, numbered, terms)


def has_one_word(line: str) -> bool:
    """True where the part beyond the width is one link or one word, which cannot be wrapped."""
    return " " not in line.strip().removeprefix("- ").removeprefix("* ")


def check_rust(path: str, text: str, terms: re.Pattern) -> Iterator[Problem]:
    block: list[tuple[int, str]] = []
    kind = ""
    for number, line in [*enumerate(text.splitlines(), 1), (0, "")]:
        comment = re.match(r"\s*(//[/!]?)(?!/)\s?(.*)$", line)
        if comment and len(line) > MOST_COLUMNS and " " in comment[2]:
            yield Problem(path, number, "line-width", f"{len(line)} characters: {line.strip()}")
        doc = comment if comment and comment[1] != "//" else None
        if block and (not doc or doc[1] != kind):
            yield from prose_problems(path, block, terms)
            block = []
        if doc:
            kind = doc[1]
            block.append((number, doc[2]))


def check(path: Path, terms: re.Pattern) -> list[Problem]:
    absolute = path.resolve()
    shown = str(absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else path)
    checker = check_rust if path.suffix == ".rs" else check_markdown
    found = list(checker(shown, path.read_text(encoding="utf-8"), terms))
    return sorted(found, key=lambda problem: problem.line)


def files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            skipped = SKIPPED_FOLDERS.intersection(relative.parts[:-1])
            if file.suffix in (".md", ".rs") and not skipped:
                yield file


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("paths", nargs="*", type=Path)
    arguments.add_argument("--glossary", type=Path, default=GLOSSARY)
    options = arguments.parse_args()

    terms = term_pattern(glossary_terms(options.glossary.read_text(encoding="utf-8")))
    everything = [ROOT / name for name in CHECKED if (ROOT / name).exists()]
    generated = {ROOT / name for name in GENERATED}
    failures: list[str] = []
    for file in files(options.paths or everything):
        if file.resolve() not in generated:
            failures += map(str, check(file, terms))
    for failure in failures:
        print(failure)
    if failures:
        print(f"lint_prose: {len(failures)} problems; the rules are in docs/STYLE.md")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
