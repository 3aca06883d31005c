//! Generates expressions that copy, compare and build. They cover the grammar, with a bias to
//! constructs that grow.

use fastrand::Rng;

/// Names that an expression may use, in addition to the payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope {
    /// Number of earlier `let`s. They are named `l0`, `l1` and so on, and all are lists.
    pub(crate) lets: usize,
    /// `item` exists.
    pub(crate) item: bool,
}

/// Writes expressions. The depth limits their length, since a rule file accepts at most 4096 bytes
/// for each.
pub(crate) struct Writer<'r> {
    pub(crate) rng: &'r mut Rng,
    pub(crate) scope: Scope,
    /// Number of variables of enclosing comprehensions: `v0`, `v1` and so on.
    variables: usize,
}

impl<'r> Writer<'r> {
    pub(crate) fn new(rng: &'r mut Rng, scope: Scope) -> Self {
        Self { rng, scope, variables: 0 }
    }

    fn one_of(&mut self, texts: &[&str]) -> String {
        texts[self.rng.usize(..texts.len())].to_owned()
    }

    pub(crate) fn list(&mut self, depth: usize) -> String {
        let form = if depth == 0 { self.rng.u8(..3) } else { self.rng.u8(..14) };
        match form {
            0 | 1 => self.one_of(&[
                "data.xs",
                "data.ys",
                "data.ts",
                "data.os",
                "data.zs",
                "data.root.children",
            ]),
            2 if self.scope.lets > 0 => format!("lets.l{}", self.rng.usize(..self.scope.lets)),
            2 => "data.ts".to_owned(),
            3..=6 => self.over("map", depth, Self::any),
            7..=9 => self.over("filter", depth, Self::condition),
            10 => format!("{} + {}", self.list(depth - 1), self.list(depth - 1)),
            11 => format!("[{}, {}]", self.any(depth - 1), self.any(depth - 1)),
            12 => format!(
                "({} ? {} : {})",
                self.condition(depth - 1),
                self.list(depth - 1),
                self.list(depth - 1)
            ),
            _ => format!("{}[0]", self.one_of(&["data.zs", "[data.xs, data.ts]"])),
        }
    }

    fn over(&mut self, name: &str, depth: usize, inner: fn(&mut Self, usize) -> String) -> String {
        let list = self.list(depth - 1);
        let variable = format!("v{}", self.variables);
        self.variables += 1;
        let inner = inner(self, depth - 1);
        self.variables -= 1;
        let list = if list.contains(' ') { format!("({list})") } else { list };
        format!("{list}.{name}({variable}, {inner})")
    }

    fn variable(&mut self) -> String {
        match self.variables {
            0 if self.scope.item => "item".to_owned(),
            0 => "data.t".to_owned(),
            count => format!("v{}", self.rng.usize(..count)),
        }
    }

    fn any(&mut self, depth: usize) -> String {
        let form = if depth == 0 { self.rng.u8(..2) } else { self.rng.u8(..8) };
        match form {
            0 => self.variable(),
            1 => self.one_of(&[
                "data.t",
                "data.u",
                "data",
                "data.xs",
                "data.os",
                "data.root",
                "previous",
                "event.id",
                "7",
            ]),
            2 | 3 => self.text(depth - 1),
            4 => self.list(depth - 1),
            5 => self.condition(depth - 1),
            6 => format!("{{\"a\": {}, \"b\": {}}}", self.any(depth - 1), self.any(depth - 1)),
            _ => format!("size({})", self.list(depth - 1)),
        }
    }

    fn text(&mut self, depth: usize) -> String {
        let form = if depth == 0 { self.rng.u8(..3) } else { self.rng.u8(..12) };
        match form {
            0 => "data.t".to_owned(),
            1 => "data.u".to_owned(),
            2 => format!("string({})", self.variable()),
            3..=6 => format!("({} + {})", self.text(depth - 1), self.text(depth - 1)),
            7..=9 => {
                let function =
                    self.one_of(&["lower", "upper", "trim", "md5", "sha1", "sha256", "urlencode"]);
                format!("{function}({})", self.text(depth - 1))
            }
            10 => format!("string(bytes({}))", self.text(depth - 1)),
            _ => format!(
                "date({}, \"%Y %A %B %Z %A %B\", \"Europe/Zurich\")",
                self.one_of(&["1767225600", "event.time", "data.n"])
            ),
        }
    }

    pub(crate) fn condition(&mut self, depth: usize) -> String {
        let form = if depth == 0 { self.rng.u8(..4) } else { self.rng.u8(..15) };
        match form {
            0 => "has(data.t)".to_owned(),
            1 => format!("changed(\"{}\")", self.one_of(&["t", "xs", "os", "root", "ts"])),
            2 => format!("{} == {}", self.variable(), self.variable()),
            3 => "data == previous".to_owned(),
            4 | 5 => format!("({} == {})", self.any(depth - 1), self.any(depth - 1)),
            6 => format!("({} in {})", self.any(depth - 1), self.list(depth - 1)),
            7 => self.over("exists", depth, Self::condition),
            8 => self.over("all", depth, Self::condition),
            9 => self.over("exists_one", depth, Self::condition),
            10 => format!("({} && {})", self.condition(depth - 1), self.condition(depth - 1)),
            11 => format!("({} || !{})", self.condition(depth - 1), self.condition(depth - 1)),
            12 => {
                let pattern = self.one_of(&[
                    r"^[\\w.-]{1,64}$",
                    "[a-z0-9-]+",
                    "(a+)+b",
                    "(.*)(.*)(.*)x",
                    r"^(\\p{L}|\\d){1,200}$",
                    "b{1,100}c",
                ]);
                format!("string({}).matches(\"{pattern}\")", self.any(depth - 1))
            }
            13 => {
                let function = self.one_of(&["contains", "startsWith", "endsWith"]);
                format!("{}.{function}({})", self.text(depth - 1), self.text(depth - 1))
            }
            _ => format!("(size({}) > {})", self.any(depth - 1), self.rng.u16(..)),
        }
    }
}
