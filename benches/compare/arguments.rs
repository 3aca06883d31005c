//! Command line arguments: `a f --rounds 5 --out docs/bench`.

use std::path::PathBuf;

pub(crate) struct Arguments {
    /// Letters of workloads, in order.
    pub(crate) workloads: Vec<char>,
    pub(crate) rounds: usize,
    /// Folder of the report.
    pub(crate) out: PathBuf,
}

pub(crate) const ALL: std::ops::RangeInclusive<char> = 'a'..='j';

impl Arguments {
    /// Parses the command line. Arguments that cargo adds are ignored.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed =
            Self { workloads: Vec::new(), rounds: 5, out: PathBuf::from("target/bench") };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => {}
                "--rounds" => {
                    let rounds = arguments
                        .next()
                        .and_then(|rounds| rounds.parse().ok())
                        .filter(|rounds| *rounds > 0);
                    parsed.rounds = rounds.ok_or("--rounds wants a number of at least 1")?;
                }
                "--out" => parsed.out = arguments.next().ok_or("--out wants a folder")?.into(),
                letter => match letter.parse() {
                    Ok(letter) if ALL.contains(&letter) => parsed.workloads.push(letter),
                    _ => return Err(format!("`{letter}` is no workload: they are a to j")),
                },
            }
        }
        if parsed.workloads.is_empty() {
            parsed.workloads = ALL.collect();
        }
        Ok(parsed)
    }
}
