//! Tap between a `Cache` and Redis that passes commands on one at a time, each in a turn of its
//! own.
//!
//! So steps of other actors come between the commands of one pipeline, as with any client. In a
//! cluster, each node has a port here. Commands to several nodes at once pass in an order that a
//! seed decides. An actor that is to die gets nothing through after some command.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::turns::Turns;

/// Turns that the commands take; none while no actor uses the tap.
type Seat = Rc<RefCell<Option<Turns>>>;

/// Rounds after which all ready tasks have run and all sent commands have arrived. A client has
/// then sent its commands to all nodes.
const SETTLED: usize = 4;

pub(super) struct Tap {
    /// One port for each server.
    pub(super) ports: Vec<u16>,
    seat: Seat,
    random: Rc<RefCell<fastrand::Rng>>,
    life: Rc<Cell<Life>>,
    began: Rc<Cell<Option<u64>>>,
}

/// Number of commands that still pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Endless,
    Commands(u32),
    Over,
}

impl Tap {
    /// Starts before the servers at those ports. Runs on the current `LocalSet` until that ends.
    pub(super) async fn start(servers: &[u16]) -> Self {
        let mut listeners = Vec::new();
        for _ in servers {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let ports: Vec<u16> =
            listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let tap = Self {
            ports,
            seat: Seat::default(),
            random: Rc::new(RefCell::new(fastrand::Rng::with_seed(0))),
            life: Rc::new(Cell::new(Life::Endless)),
            began: Rc::default(),
        };
        let (arrivals, arrived) = mpsc::unbounded_channel();
        for ((place, listener), &server) in listeners.into_iter().enumerate().zip(servers) {
            tokio::task::spawn_local(accept(place, listener, server, arrivals.clone()));
        }
        let ports = servers.iter().copied().zip(tap.ports.iter().copied()).collect();
        let passing = Passing {
            lines: BTreeMap::new(),
            ports,
            seat: Rc::clone(&tap.seat),
            random: Rc::clone(&tap.random),
            life: Rc::clone(&tap.life),
            began: Rc::clone(&tap.began),
        };
        tokio::task::spawn_local(passing.run(arrived));
        tap
    }

    /// Sets the turns that commands take from now on.
    pub(super) fn seat(&self, turns: Option<Turns>) {
        *self.seat.borrow_mut() = turns;
        self.began.set(None);
    }

    /// Returns the time of the first command since the turns were set.
    pub(super) fn began(&self) -> Option<u64> {
        self.began.get()
    }

    /// Sets the number of commands that still pass. After them the client is dead, and Redis
    /// receives nothing more from it. `None` means that it lives.
    pub(super) fn dies_after(&self, commands: Option<u32>) {
        self.life.set(commands.map_or(Life::Endless, Life::Commands));
    }

    /// Returns whether a command was held back for that reason.
    pub(super) fn is_dead(&self) -> bool {
        self.life.get() == Life::Over
    }

    /// Sets the random generator that decides between its nodes.
    pub(super) fn shuffle(&self, random: fastrand::Rng) {
        *self.random.borrow_mut() = random;
    }
}

/// Name of a connection: its server's place, and its number there.
type Name = (usize, u64);

enum Arrival {
    Connected { name: Name, client: OwnedWriteHalf, server: TcpStream },
    Asked { name: Name, command: Vec<u8> },
    Gone { name: Name },
}

struct Line {
    client: OwnedWriteHalf,
    server: TcpStream,
    answered: Vec<u8>,
    waiting: VecDeque<Vec<u8>>,
}

/// All connections of one client.
struct Passing {
    lines: BTreeMap<Name, Line>,
    /// Ports of the servers, and our ports.
    ports: BTreeMap<u16, u16>,
    seat: Seat,
    random: Rc<RefCell<fastrand::Rng>>,
    life: Rc<Cell<Life>>,
    began: Rc<Cell<Option<u64>>>,
}

async fn accept(
    place: usize,
    listener: TcpListener,
    server: u16,
    arrivals: mpsc::UnboundedSender<Arrival>,
) {
    for number in 0.. {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (asked, client) = client.into_split();
        let name = (place, number);
        if arrivals.send(Arrival::Connected { name, client, server }).is_err() {
            return;
        }
        tokio::task::spawn_local(listen(name, asked, arrivals.clone()));
    }
}

async fn listen(name: Name, mut client: OwnedReadHalf, arrivals: mpsc::UnboundedSender<Arrival>) {
    let mut buffer = Vec::new();
    while let Some(command) = frame(&mut client, &mut buffer).await {
        if arrivals.send(Arrival::Asked { name, command }).is_err() {
            return;
        }
    }
    let _ended = arrivals.send(Arrival::Gone { name });
}

impl Passing {
    async fn run(mut self, mut arrived: mpsc::UnboundedReceiver<Arrival>) {
        while let Some(first) = arrived.recv().await {
            self.take(first);
            if self.ports.len() > 1 {
                for _ in 0..SETTLED {
                    tokio::task::yield_now().await;
                }
            }
            loop {
                while let Ok(more) = arrived.try_recv() {
                    self.take(more);
                }
                if !self.pass_one().await {
                    break;
                }
            }
        }
    }

    fn take(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Connected { name, client, server } => {
                self.lines.insert(
                    name,
                    Line { client, server, answered: Vec::new(), waiting: VecDeque::new() },
                );
            }
            Arrival::Asked { name, command } => {
                self.lines.get_mut(&name).unwrap().waiting.push_back(command)
            }
            Arrival::Gone { name } => drop(self.lines.remove(&name)),
        }
    }

    /// Passes a command on, and its answer back; returns false if no command waits.
    async fn pass_one(&mut self) -> bool {
        let waiting: Vec<Name> = self
            .lines
            .iter()
            .filter(|(_, line)| !line.waiting.is_empty())
            .map(|(name, _)| *name)
            .collect();
        let name = match &waiting[..] {
            [] => return false,
            [only] => *only,
            several => several[self.random.borrow_mut().usize(..several.len())],
        };
        let line = self.lines.get_mut(&name).unwrap();
        let command = line.waiting.pop_front().unwrap();
        self.life.set(match self.life.get() {
            Life::Commands(0) => Life::Over,
            Life::Commands(left) => Life::Commands(left - 1),
            other => other,
        });
        if self.life.get() == Life::Over {
            let _gone = line.client.write_all(b"-ERR nobody is there to ask\r\n").await;
            return true;
        }
        let turns = self.seat.borrow().clone();
        if let Some(turns) = &turns {
            turns.next().await;
            self.began.set(self.began.get().or(Some(turns.now())));
        }
        line.server.write_all(&command).await.unwrap();
        let mut answer = frame(&mut line.server, &mut line.answered).await.expect("Redis answers");
        if let Some(turns) = &turns {
            turns.show(|| format!("{} -> {}", shown(&command), shown(&answer)));
        }
        if command.ends_with(b"CLUSTER\r\n$5\r\nSLOTS\r\n") {
            answer = announcing(&answer, &self.ports);
        }
        let _gone = line.client.write_all(&answer).await;
        true
    }
}

/// Returns the answer to `CLUSTER SLOTS` with other ports. No slot has a number that equals a port.
fn announcing(answer: &[u8], ports: &BTreeMap<u16, u16>) -> Vec<u8> {
    let mut lines = String::from_utf8(answer.to_vec()).unwrap();
    for (server, ours) in ports {
        lines = lines.replace(&format!(":{server}\r\n"), &format!(":{ours}\r\n"));
    }
    lines.into_bytes()
}

/// Returns the next whole command or answer; `None` if the other side has closed.
async fn frame(from: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(end) = end_of_frame(buffer) {
            let rest = buffer.split_off(end);
            return Some(std::mem::replace(buffer, rest));
        }
        if from.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// Returns a command or an answer in readable form, without the lengths of its parts.
pub(super) fn shown(frame: &[u8]) -> String {
    let text = String::from_utf8_lossy(frame);
    text.split("\r\n")
        .filter(|line| !line.starts_with(['*', '$']) || *line == "$-1")
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns the end of the first RESP2 frame, if it is whole.
fn end_of_frame(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let number = || std::str::from_utf8(&bytes[1..line]).unwrap().parse::<i64>().unwrap();
    let after = line + 2;
    match bytes[0] {
        b'$' => match usize::try_from(number()) {
            Ok(length) => (bytes.len() >= after + length + 2).then_some(after + length + 2),
            Err(_) => Some(after),
        },
        b'*' => (0..number()).try_fold(after, |end, _| Some(end + end_of_frame(&bytes[end..])?)),
        b'+' | b'-' | b':' => Some(after),
        other => panic!("no RESP2: {other}"),
    }
}

#[test]
fn frames_end_where_they_end() {
    for whole in [
        "+OK\r\n",
        ":12\r\n",
        "$2\r\nab\r\n",
        "$-1\r\n",
        "*0\r\n",
        "*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
        "*-1\r\n",
    ] {
        assert_eq!(
            end_of_frame(format!("{whole}+more\r\n").as_bytes()),
            Some(whole.len()),
            "{whole}"
        );
        assert!(
            (0..whole.len()).all(|part| end_of_frame(&whole.as_bytes()[..part]).is_none()),
            "{whole}"
        );
    }
}
