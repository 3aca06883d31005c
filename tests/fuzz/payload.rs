//! Generates payloads from genes: a few small numbers define a large document. A search varies them
//! one by one.

use std::fmt::Write as _;

use fastrand::Rng;

/// A text in every payload that must not be in any message.
pub(crate) const SECRET: &str = "s3cr3t";

/// Number of genes.
const GENES: usize = 20;

/// The form of one payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Genome(pub(crate) [u8; GENES]);

/// Index of each gene.
#[repr(usize)]
#[derive(Clone, Copy)]
enum Gene {
    Form,
    Alphabet,
    ShortText,
    LongText,
    Numbers,
    OtherNumbers,
    NumberText,
    Texts,
    TextBytes,
    Objects,
    ObjectMembers,
    Lists,
    ListItems,
    TreeDepth,
    TreeWidth,
    TreeLeaf,
    Members,
    MemberKind,
    Previous,
    Odd,
}

use Gene::{
    Alphabet, Form, ListItems, Lists, LongText, MemberKind, Members, NumberText, Numbers,
    ObjectMembers, Objects, Odd, OtherNumbers, Previous, ShortText, TextBytes, Texts, TreeDepth,
    TreeLeaf, TreeWidth,
};

const SIZES: [Gene; 11] = [
    ShortText,
    LongText,
    Numbers,
    OtherNumbers,
    Texts,
    TextBytes,
    Objects,
    ObjectMembers,
    Lists,
    ListItems,
    Members,
];

impl Genome {
    /// Returns random genes, mostly small ones, since large documents are expensive to build.
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let mut genes = [0; GENES].map(|_: u8| rng.u8(..));
        // About a hundred elements at most. One document in thirty-two may have any size.
        let most = if rng.u8(..32) == 0 { u8::MAX } else { 84 };
        for size in SIZES {
            genes[size as usize] = rng.u8(..=most).min(rng.u8(..=most));
        }
        Self(genes)
    }

    /// Returns genes that differ in one or two.
    pub(crate) fn mutated(&self, rng: &mut Rng) -> Self {
        let mut genes = self.0;
        for _ in 0..rng.usize(1..=2) {
            let gene = &mut genes[rng.usize(..GENES)];
            *gene = match rng.u8(..4) {
                0 => gene.saturating_add(rng.u8(1..40)),
                1 => gene.saturating_sub(rng.u8(1..40)),
                _ => rng.u8(..),
            };
        }
        Self(genes)
    }

    fn gene(&self, gene: Gene) -> usize {
        usize::from(self.0[gene as usize])
    }

    /// Returns a size from 0 to about a million. Most of the scale is small.
    fn size(&self, gene: Gene) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "at most 2^20"
        )]
        let size = (self.gene(gene) as f64 / 12.75).exp2() as usize - 1;
        size
    }

    /// Returns the body of a message with the routing key `e.a`, at most about a mebibyte.
    pub(crate) fn body(&self) -> Vec<u8> {
        let mut data = String::with_capacity(4096);
        self.write_object(&mut data, false);
        let form = self.gene(Form) % 8;
        let body = match form {
            0 | 1 => {
                let mut previous = String::new();
                match self.gene(Previous) % 4 {
                    0 => previous.push_str(&data),
                    1 => previous.push_str("{}"),
                    _ => self.write_object(&mut previous, true),
                }
                format!(
                    r#"{{"type":"e.a","id":"1","time":"2026-01-01T00:00:00Z","data":{data},"previous":{previous}}}"#
                )
            }
            2 => format!(
                r#"{{"specversion":"1.0","id":"1","source":"s","type":"e.a","data":{data}}}"#
            ),
            3 => format!(
                r#"{{"op":"u","source":{{"name":"e","schema":"b","table":"c"}},"before":{data},"after":{data}}}"#
            ),
            _ => data,
        };
        body.into_bytes()
    }

    fn write_object(&self, out: &mut String, is_previous: bool) {
        let mut left = 900_000_usize >> usize::from(is_previous || self.gene(Form) % 8 == 3);
        let mut fit = |count: usize, each: usize| {
            let count = count.min(left / (each + 1));
            left -= count * (each + 1);
            count
        };
        let text_bytes = self.size(TextBytes).min(100_000);
        let inner = self.size(ObjectMembers).min(2_000);
        let items = self.size(ListItems).min(50_000);
        let number =
            ["7", "-0.5", "1e3", "9007199254740993", "19.90", "1e400"][self.gene(NumberText) % 6];
        let _ = write!(out, r#"{{"id":7,"n":{number},"t":""#);
        self.write_text(out, fit(self.size(ShortText), 6));
        out.push_str(r#"","u":""#);
        self.write_text(out, fit(self.size(LongText), 6));
        out.push_str(r#"","xs":"#);
        write_list(out, fit(self.size(Numbers), 7), |out, n| {
            let _ = write!(out, "{n}");
        });
        out.push_str(r#","ys":"#);
        write_list(out, fit(self.size(OtherNumbers), 7), |out, n| {
            let _ = write!(out, "{}", if is_previous { n + 1 } else { n });
        });
        out.push_str(r#","ts":"#);
        write_list(out, fit(self.size(Texts), text_bytes + 12), |out, n| {
            let _ = write!(out, "\"{n}-{}\"", "abc".repeat(text_bytes / 3));
        });
        out.push_str(r#","os":"#);
        write_list(out, fit(self.size(Objects), inner * 9 + 20), |out, n| {
            let _ = write!(out, r#"{{"k":"k{n}","changed":true,"xs":"#);
            write_list(out, inner, |out, n| {
                let _ = write!(out, "{n}");
            });
            out.push('}');
        });
        out.push_str(r#","zs":"#);
        write_list(out, fit(self.size(Lists), items * 5 + 3), |out, n| {
            write_list(out, items, |out, at| {
                let _ = write!(out, "{}", (at + n) % 9_999);
            });
        });
        out.push_str(r#","root":"#);
        let depth = self.gene(TreeDepth) % 46;
        let width = if depth < 12 { 1 + self.gene(TreeWidth) % 4 } else { 1 };
        let mut nodes = fit(if self.gene(TreeWidth) < 16 { 4_000 } else { 60 }, 40);
        self.write_tree(out, depth, width, &mut nodes);
        for n in 0..fit(self.size(Members), 12) {
            match self.gene(MemberKind) % 4 {
                0 => {
                    let _ = write!(out, r#","m{n}":{n}"#);
                }
                1 => {
                    let _ = write!(out, r#","same":{n}"#);
                }
                2 => {
                    let _ = write!(out, r#","ab{}":"{SECRET}""#, "ab".repeat(n % 9));
                }
                _ => {
                    let _ = write!(out, r#","{SECRET}{n}":null"#);
                }
            }
        }
        match self.gene(Odd) % 8 {
            0 => out.push_str(",\"m\":{\"a\":{\"b\":{\"c\":[1,2,3]}}}}"),
            1 => out.push_str(r#","m":null}"#),
            2 => out.push_str(r#","t":"unstale:seq"}"#),
            3 => out.push_str(r#","m":[{"a":1}]}"#),
            4 => out.push_str(",\"m\":{\"a\\n\\u001b[31m\":1}}"),
            _ => out.push('}'),
        }
    }

    fn write_text(&self, out: &mut String, count: usize) {
        let piece = [
            SECRET,
            "bbbbbb",
            "aaaaaa",
            "a.a.a.",
            "\u{fdfa}\u{fdfa}",
            r"\u00e9",
            r#"\n\t\""#,
            "{}:%2f",
            "1:2:3:",
            "  \u{130}  ",
        ];
        let piece = piece[self.gene(Alphabet) % piece.len()];
        for _ in 0..count {
            out.push_str(piece);
        }
    }

    fn write_tree(&self, out: &mut String, depth: usize, width: usize, nodes: &mut usize) {
        if depth == 0 || *nodes == 0 {
            out.push_str(
                ["1", r#""z""#, "{}", r#"{"type":"z"}"#, r#"{"type":"d"}"#, "null", "[]"]
                    [self.gene(TreeLeaf) % 7],
            );
            return;
        }
        out.push_str(r#"{"type":"a","children":["#);
        for at in 0..width {
            if at > 0 {
                out.push(',');
            }
            *nodes = nodes.saturating_sub(1);
            self.write_tree(out, depth - 1, width, nodes);
        }
        out.push_str("]}");
    }
}

fn write_list(out: &mut String, count: usize, mut element: impl FnMut(&mut String, usize)) {
    out.push('[');
    for n in 0..count {
        if n > 0 {
            out.push(',');
        }
        element(out, n);
    }
    out.push(']');
}
