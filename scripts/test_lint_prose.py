"""Tests of lint_prose.py: `python3 scripts/test_lint_prose.py`."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import lint_prose

TERMS = lint_prose.term_pattern(["in hand", "rung", "told"])
LONG = "a b c d e f g h i j k l m n o p q r s t u v w x y"


def rules(text: str, checker=lint_prose.check_markdown) -> list[tuple[int, str]]:
    return [(problem.line, problem.rule) for problem in checker("page", text, TERMS)]


class Markdown(unittest.TestCase):
    def test_a_sentence_of_25_words_passes_and_one_of_26_fails(self):
        self.assertEqual(rules(f"{LONG}."), [])
        self.assertEqual(rules(f"{LONG} z."), [(1, "sentence-length")])

    def test_a_code_span_is_one_word_and_its_content_is_not_read(self):
        self.assertEqual(rules("Run `a b; c d: e told; " + "x " * 30 + "` now."), [])

    def test_a_link_counts_its_text_and_not_its_target(self):
        self.assertEqual(rules('See [the page](a/told:long;path.md "told: x; y").'), [])
        self.assertEqual(rules("See [what was told](page.md)."), [(1, "term")])

    def test_sentences_end_at_full_stops_and_not_at_abbreviations_or_numbers(self):
        half = "a b c d e f g h i j k l m"
        self.assertEqual(rules(f"{half} 1.5. Then {half}. `told` {half}."), [])
        self.assertEqual(rules(f"{half} e.g. Then {half} end."), [(1, "sentence-length")])

    def test_the_line_is_that_of_the_sentence_in_a_wrapped_paragraph(self):
        page = "# Head\n\nShort one. It\ngoes on. What is\nthis.\n"
        self.assertEqual(rules(page), [(4, "opening")])

    def test_list_items_and_paragraphs_end_sentences(self):
        page = f"- {LONG}\n- {LONG}\n\n{LONG}\n# {LONG}\n1. {LONG}\n   z.\n"
        self.assertEqual(rules(page), [(6, "sentence-length")])

    def test_one_colon_or_semicolon_passes_and_two_fail(self):
        self.assertEqual(rules("At 10:30 one: two."), [])
        self.assertEqual(rules("One: two; three."), [(1, "punctuation")])

    def test_the_colon_after_a_label_is_free(self):
        self.assertEqual(rules("- **Label:** one: two.\n- `code`: one; two."), [])

    def test_forbidden_openings_fail_at_sentences_only(self):
        self.assertEqual(rules("# What it does\n\nWhat happens then?\n"), [])
        self.assertEqual(rules("It is. (Whether so.)\n\n**Of** it."), [(1, "opening"), (3, "opening")])
        self.assertEqual(rules("Whatever. Often. Offsets."), [])

    def test_a_table_cell_is_a_phrase(self):
        self.assertEqual(rules("| What | who |\n|---|---|\n| a; b; c: d | Who acts |\n"), [])
        self.assertEqual(rules(f"| a |\n|---|\n| {LONG} f g |\n"), [(3, "sentence-length")])
        self.assertEqual(rules("| a |\n|---|\n| What it is. |\n"), [(3, "opening")])

    def test_terms_fail_in_any_case_across_lines_and_in_the_plural(self):
        self.assertEqual(rules("It is In\nhand. Two rungs."), [(1, "term"), (2, "term")])
        self.assertEqual(rules("A wrung hand is retold."), [])

    def test_a_term_in_quotes_is_spoken_about(self):
        self.assertEqual(rules('| in flight | "in hand" |\n\nWrite it instead of "told".'), [])

    def test_code_blocks_and_comments_are_not_read(self):
        page = f"```console\n$ told {'x' * 120} {LONG} f g\n```\n\n<!-- told -->\n<!--\ntold\n-->\n"
        self.assertEqual(rules(page), [])
        self.assertEqual(rules("1. Do:\n\n   ```sh\n   told\n   ```\n"), [])

    def test_wide_lines_fail_but_for_rows_headings_and_single_links(self):
        wide = "word " * 20
        self.assertEqual(rules(f"{wide}a."), [(1, "line-width")])
        self.assertEqual(rules(f"| {wide}|\n|---|\n- [x](https://x/{'y' * 100})\n"), [])


class Rust(unittest.TestCase):
    def rules(self, text: str) -> list[tuple[int, str]]:
        return rules(text, lint_prose.check_rust)

    def test_doc_comments_are_read_and_code_and_plain_comments_are_not(self):
        code = '//! Of it.\n\n/// Nor\n/// it.\nfn told() {} // told\n// Whether so.\nlet told = "told";\n'
        self.assertEqual(self.rules(code), [(1, "opening"), (3, "opening")])

    def test_a_module_header_and_the_item_below_it_are_apart(self):
        self.assertEqual(self.rules(f"//! {LONG}\n/// {LONG}\nfn f() {{}}\n"), [])

    def test_intra_doc_links_are_words(self):
        self.assertEqual(self.rules("/// Returns [`told; a: b`] and [`x`](y::told)."), [])

    def test_wide_comments_of_every_kind_fail(self):
        wide = "word " * 20
        self.assertEqual(self.rules(f"// {wide}\n"), [(1, "line-width")])
        self.assertEqual(self.rules(f'const A: &str = "{wide}";\n'), [])


class WholeRun(unittest.TestCase):
    def run_in(self, root: Path, *arguments: str) -> tuple[int, str]:
        output = io.StringIO()
        with (
            mock.patch.multiple(lint_prose, ROOT=root, GLOSSARY=root / "docs/GLOSSARY.md"),
            mock.patch("sys.argv", ["lint_prose.py", *arguments]),
            contextlib.redirect_stdout(output),
        ):
            return lint_prose.main(), output.getvalue()

    def test_it_prints_place_rule_and_sentence(self):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve()
            for name in ("docs", "src"):
                (root / name).mkdir()
            glossary = '| term | meaning | instead of |\n|---|---|---|\n| fix | repair | "mend" |\n'
            (root / "docs/GLOSSARY.md").write_text(glossary)
            (root / "src/lib.rs").write_text("/// It is.\n")
            self.assertEqual(self.run_in(root), (0, ""))

            (root / "docs/page.md").write_text("One.\nThey mend it.\n")
            code, output = self.run_in(root)
            self.assertEqual(code, 1)
            self.assertIn("docs/page.md:2: term: `mend` (docs/GLOSSARY.md): They mend it.", output)

            (root / "src/lib.rs").write_text("/// Of it.\n")
            code, output = self.run_in(root, str(root / "src/lib.rs"))
            self.assertEqual(code, 1)
            self.assertIn("src/lib.rs:1: opening:", output)
            self.assertNotIn("page.md", output)


if __name__ == "__main__":
    unittest.main()
