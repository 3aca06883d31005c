//! A publisher that speaks AMQP 1.0: one confirmed message per connection, encoded by hand.
//!
//! RabbitMQ 4 speaks the protocol itself, and earlier versions need the plugin `rabbitmq_amqp1_0`.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Type and content of one part of a message, encoded.
type Encoded = Vec<u8>;

/// A message whose body is JSON, and the parts that differ from the simplest one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message10 {
    pub(crate) body: String,
    annotations: Vec<(String, Encoded)>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    application_properties: Vec<(String, Encoded)>,
}

impl Message10 {
    pub(crate) fn new(body: &str) -> Self {
        Self { body: body.to_owned(), ..Self::default() }
    }

    /// Adds an application property of type `uuid`.
    pub(crate) fn with_uuid(mut self, name: &str) -> Self {
        self.application_properties.push((name.to_owned(), [&[0x98][..], &[7; 16]].concat()));
        self
    }

    /// Adds an application property of type `char`.
    pub(crate) fn with_char(mut self, name: &str) -> Self {
        self.application_properties.push((name.to_owned(), a_char()));
        self
    }

    /// Adds a message annotation of type `char`.
    pub(crate) fn with_char_annotation(mut self, name: &str) -> Self {
        self.annotations.push((name.to_owned(), a_char()));
        self
    }

    pub(crate) fn with_content_type(mut self, content_type: &str) -> Self {
        self.content_type = Some(content_type.to_owned());
        self
    }

    pub(crate) fn with_content_encoding(mut self, content_encoding: &str) -> Self {
        self.content_encoding = Some(content_encoding.to_owned());
        self
    }

    fn encoded(&self) -> Encoded {
        let mut message = section(0x70, list(&[vec![0x41]]));
        if !self.annotations.is_empty() {
            message.extend(section(0x72, map(&self.annotations, symbol)));
        }
        let optional = |text: &Option<String>| text.as_deref().map_or_else(null, symbol);
        let mut properties = vec![null(); 6];
        properties.extend([optional(&self.content_type), optional(&self.content_encoding)]);
        message.extend(section(0x73, list(&properties)));
        if !self.application_properties.is_empty() {
            message.extend(section(0x74, map(&self.application_properties, string)));
        }
        message.extend(section(0x75, sized(0xb0, self.body.as_bytes())));
        message
    }
}

fn a_char() -> Encoded {
    [&[0x73][..], &u32::from('é').to_be_bytes()].concat()
}

fn null() -> Encoded {
    vec![0x40]
}

fn uint(number: u32) -> Encoded {
    [&[0x70][..], &number.to_be_bytes()].concat()
}

/// Returns a value of a type whose size has 4 bytes.
fn sized(code: u8, bytes: &[u8]) -> Encoded {
    [&[code][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn string(text: &str) -> Encoded {
    sized(0xb1, text.as_bytes())
}

fn symbol(text: &str) -> Encoded {
    sized(0xb3, text.as_bytes())
}

fn list(items: &[Encoded]) -> Encoded {
    let count = u32::try_from(items.len()).unwrap().to_be_bytes();
    sized(0xd0, &[&count[..], &items.concat()].concat())
}

fn map(pairs: &[(String, Encoded)], key: fn(&str) -> Encoded) -> Encoded {
    let count = u32::try_from(2 * pairs.len()).unwrap().to_be_bytes();
    let items: Vec<Encoded> =
        pairs.iter().flat_map(|(name, value)| [key(name), value.clone()]).collect();
    sized(0xd1, &[&count[..], &items.concat()].concat())
}

/// Returns a described value: a section, a performative or a terminus.
fn section(code: u8, value: Encoded) -> Encoded {
    [&[0x00, 0x53, code][..], &value].concat()
}

/// Publishes to an address such as `/exchanges/EXCHANGE/KEY` (RabbitMQ 4) or `/exchange/EXCHANGE/KEY`
/// (before), as `guest`. Returns when the broker has accepted the message.
pub(crate) async fn publish(broker: &str, address: &str, message: &Message10) {
    let publishing = async {
        let mut stream = TcpStream::connect(broker).await.unwrap();
        let plain = sized(0xb0, b"\0guest\0guest");
        stream.write_all(b"AMQP\x03\x01\x00\x00").await.unwrap();
        let mut greeting = [0; 8];
        stream.read_exact(&mut greeting).await.unwrap();
        send(&mut stream, 1, section(0x41, list(&[symbol("PLAIN"), plain]))).await;
        wait_for(&mut stream, 0x44).await;
        stream.write_all(b"AMQP\x00\x01\x00\x00").await.unwrap();
        stream.read_exact(&mut greeting).await.unwrap();
        let begin = [null(), uint(0), uint(2048), uint(2048)];
        let attach = [
            string("test"),
            uint(0),
            vec![0x42],
            vec![0x50, 0],
            vec![0x50, 0],
            section(0x28, list(&[string("test")])),
            section(0x29, list(&[string(address)])),
            null(),
            null(),
            uint(0),
        ];
        send(&mut stream, 0, section(0x10, list(&[string("test"), string("test")]))).await;
        send(&mut stream, 0, section(0x11, list(&begin))).await;
        send(&mut stream, 0, section(0x12, list(&attach))).await;
        wait_for(&mut stream, 0x13).await;
        let transfer = [uint(0), uint(0), sized(0xb0, b"1"), uint(0), vec![0x42], vec![0x42]];
        let transfer = [section(0x14, list(&transfer)), message.encoded()].concat();
        send(&mut stream, 0, transfer).await;
        let disposition = wait_for(&mut stream, 0x15).await;
        let is_accepted = disposition.windows(2).any(|bytes| bytes == [0x53, 0x24]);
        assert!(is_accepted, "{address} did not accept it: {disposition:x?}");
        send(&mut stream, 0, section(0x18, list(&[]))).await;
        wait_for(&mut stream, 0x18).await;
    };
    tokio::time::timeout(Duration::from_secs(30), publishing)
        .await
        .expect("the broker speaks AMQP 1.0");
}

/// Sends one frame, on channel 0. Type 1 is SASL.
async fn send(stream: &mut TcpStream, frame_type: u8, body: Encoded) {
    let size = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
    stream.write_all(&[&size[..], &[2, frame_type, 0, 0], &body].concat()).await.unwrap();
}

/// Reads frames up to one with that performative, and returns its body.
async fn wait_for(stream: &mut TcpStream, performative: u8) -> Encoded {
    loop {
        let size = stream.read_u32().await.expect("the broker answers");
        let mut frame = vec![0; size as usize - 4];
        stream.read_exact(&mut frame).await.expect("a whole frame");
        let body = frame.split_off(4);
        let Some(&code) = body.get(2) else { continue };
        if code == performative {
            return body;
        }
        // The end of a session or of a connection says why.
        let text = String::from_utf8_lossy(&body);
        assert!(!matches!(code, 0x16..=0x18), "refused: {text}");
    }
}
