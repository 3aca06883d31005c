//! Stands between a `Cache` and Redis, and passes its commands on one at a time, each in a turn of its own: so that others' steps come between the
//! commands of one pipeline, as they may between those of any client.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::turns::Turns;

/// Whose turns its commands take; none while nobody plays.
type Seat = Rc<RefCell<Option<Turns>>>;

pub(super) struct Tap {
    pub(super) port: u16,
    seat: Seat,
}

impl Tap {
    /// Before a server at `upstream`. Runs on the `LocalSet` at hand, for as long as that does.
    pub(super) async fn start(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tap = Self { port: listener.local_addr().unwrap().port(), seat: Seat::default() };
        let seat = Rc::clone(&tap.seat);
        tokio::task::spawn_local(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&upstream).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                tokio::task::spawn_local(pass(client, server, Rc::clone(&seat)));
            }
        });
        tap
    }

    /// From here on its commands take these turns.
    pub(super) fn seat(&self, turns: Option<Turns>) {
        *self.seat.borrow_mut() = turns;
    }
}

async fn pass(mut client: TcpStream, mut server: TcpStream, seat: Seat) {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    loop {
        let Some(command) = frame(&mut client, &mut asked).await else { return };
        let turns = seat.borrow().clone();
        if let Some(turns) = turns {
            turns.next().await;
        }
        server.write_all(&command).await.unwrap();
        let answer = frame(&mut server, &mut answered).await.expect("Redis answers");
        if client.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// The next whole command or answer; `None` where the other side has gone.
async fn frame(from: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
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

/// Where the first frame of RESP2 ends, if it is whole.
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
    for whole in ["+OK\r\n", ":12\r\n", "$2\r\nab\r\n", "$-1\r\n", "*0\r\n", "*2\r\n$1\r\na\r\n*1\r\n:1\r\n", "*-1\r\n"] {
        assert_eq!(end_of_frame(format!("{whole}+more\r\n").as_bytes()), Some(whole.len()), "{whole}");
        assert!((0..whole.len()).all(|part| end_of_frame(&whole.as_bytes()[..part]).is_none()), "{whole}");
    }
}
