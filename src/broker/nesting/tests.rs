use proptest::prelude::*;

use super::*;

/// Returns a frame with that payload.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 1];
    frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend(payload);
    frame.push(0xce);
    frame
}

/// Returns a content header with a content type and these headers.
fn content_header(headers: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    payload.extend((1u16 << 15 | 1 << 13 | 1 << 12).to_be_bytes());
    payload.extend([4, b'j', b's', b'o', b'n']);
    payload.extend(u32::try_from(headers.len()).unwrap().to_be_bytes());
    payload.extend(headers);
    payload.push(2);
    frame(CONTENT_HEADER, &payload)
}

fn nested(value_type: u8, levels: usize) -> Vec<u8> {
    let mut value = vec![b't', 1];
    for _ in 0..levels {
        let inner = if value_type == b'F' { [&[1, b'k'][..], &value].concat() } else { value };
        value = [&[value_type][..], &u32::try_from(inner.len()).unwrap().to_be_bytes(), &inner]
            .concat();
    }
    value
}

fn member(value: &[u8]) -> Vec<u8> {
    [&[1, b'h'][..], value].concat()
}

/// Returns how deep the values of a table or array are nested, as lapin would read them.
fn depth(mut bytes: &[u8], is_table: bool) -> usize {
    let mut deepest = 0;
    while !bytes.is_empty() {
        if is_table {
            bytes = &bytes[1 + usize::from(bytes[0])..];
        }
        let (value_type, rest) = (bytes[0], &bytes[1..]);
        let fixed = match value_type {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            _ => {
                let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
                if matches!(value_type, b'A' | b'F') {
                    deepest = deepest.max(1 + depth(&rest[4..4 + length], value_type == b'F'));
                }
                4 + length
            }
        };
        bytes = &rest[fixed..];
    }
    deepest
}

fn headers_of(content_header: &[u8]) -> &[u8] {
    let from = 7 + 14 + 5 + 4;
    &content_header[from..content_header.len() - 2]
}

/// Scans the bytes in pieces of that size.
fn levelled(bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut frames = Frames::default();
    let mut bytes = bytes.to_vec();
    for piece in bytes.chunks_mut(piece) {
        frames.level(piece);
    }
    assert_eq!((frames.part, frames.left), (Part::FrameHead, 7), "it ends where a frame does");
    bytes
}

#[test]
fn a_value_beyond_the_limit_becomes_bytes_and_nothing_else_changes() {
    for value_type in [b'A', b'F'] {
        for (levels, expected) in [
            (1, 1),
            (LEVELS_MAX - 1, LEVELS_MAX - 1),
            (LEVELS_MAX, LEVELS_MAX - 1),
            (9_000, LEVELS_MAX - 1),
        ] {
            let beside = [
                member(b"S\0\0\0\x02hi"),
                member(&nested(value_type, levels)),
                member(b"V"),
                member(&[b't', 0]),
            ]
            .concat();
            let stream =
                [frame(1, b"deliver"), content_header(&beside), frame(3, b"{}"), frame(8, b"")]
                    .concat();
            for piece in [1, 7, 1_000, usize::MAX] {
                let found = levelled(&stream, piece);
                let header = &found[15..];
                assert_eq!(
                    depth(headers_of(&header[..header.len() - 10 - 8]), true),
                    expected,
                    "{levels} levels"
                );
                let changed =
                    found.iter().zip(&stream).filter(|(found, sent)| found != sent).count();
                assert_eq!(
                    changed,
                    usize::from(levels > expected),
                    "{levels} levels in pieces of {piece}"
                );
            }
        }
    }
}

#[test]
fn every_type_of_value_is_passed_over() {
    let values: [&[u8]; 13] = [
        b"V",
        b"t1",
        b"b1",
        b"B1",
        b"s12",
        b"U12",
        b"u12",
        b"I1234",
        b"f1234",
        b"D12345",
        b"l12345678",
        b"T12345678",
        b"x\0\0\0\x01A",
    ];
    let before: Vec<u8> = values.iter().flat_map(|value| member(value)).collect();
    let headers = [before, member(&nested(b'A', 500))].concat();
    let found = levelled(&content_header(&headers), 3);
    assert_eq!(depth(headers_of(&found), true), LEVELS_MAX - 1);
}

/// Returns a short text.
fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text].concat()
}

#[test]
fn every_short_text_becomes_utf_8() {
    let bad = short(b"\xff.\xc3");
    let mended = short(b"?.?");
    let stream = |text: &[u8]| {
        let delivered = [&[0; 9][..], text, text].concat();
        let inner = [text, b"t\x01"].concat();
        let inner = [&[0, 0, 0, 6][..], &inner].concat();
        let headers = [text, b"F", &inner, text, b"S\0\0\0\x01\xff"].concat();
        let mut header = vec![0; 12];
        header.extend(0xfffc_u16.to_be_bytes());
        header.extend([text, text].concat());
        header.extend(u32::try_from(headers.len()).unwrap().to_be_bytes());
        header.extend([&headers[..], &[2, 255], text, text, text, text, &[255; 8]].concat());
        header.extend([text, text, text, text].concat());
        [
            frame(METHOD, &[&[0, 60, 0, 60][..], text, &delivered].concat()),
            frame(CONTENT_HEADER, &header),
            frame(3, b"\xff\xfe"),
            frame(METHOD, &[&[0, 60, 0, 71][..], &delivered, &[0; 4]].concat()),
            frame(METHOD, &[&[0, 60, 0, 50, 1, 56][..], text, text, text].concat()),
            frame(METHOD, &[&[0, 20, 0, 40, 1, 150][..], text, &[0; 4]].concat()),
            frame(METHOD, &[&[0, 10, 0, 50, 1, 150][..], text, &[0; 4]].concat()),
            frame(METHOD, &[&[0, 60, 0, 80][..], &[255; 9]].concat()),
        ]
        .concat()
    };
    for piece in [1, 2, 3, 50, usize::MAX] {
        assert_eq!(levelled(&stream(&bad), piece), stream(&mended), "in pieces of {piece}");
    }
}

#[test]
fn frames_without_a_fault_are_plain() {
    let deliver = |key: &[u8]| {
        let delivered = [&[0, 60, 0, 60][..], &short(b"tag"), &[0xff; 9], &short(b""), &short(key)];
        frame(METHOD, &delivered.concat())
    };
    let text =
        |text: &[u8]| [&b"S"[..], &u32::try_from(text.len()).unwrap().to_be_bytes(), text].concat();
    for (frame, is_plain) in [
        (deliver(b"user.updated"), true),
        (deliver("sch\u{f6}n".as_bytes()), true),
        (deliver(b"sch\xf6n"), false),
        (content_header(&member(&text(b"x"))), true),
        (content_header(&member(&text(&[0xff; 400]))), true),
        (content_header(&[member(b"V"), member(&[b'l'; 9]), member(&text(b"x"))].concat()), true),
        (content_header(&[&short(b"\xff")[..], b"V"].concat()), false),
        (content_header(&member(&nested(b'F', LEVELS_MAX))), false),
        (frame(3, b"\xff{}"), true),
        (frame(8, b""), true),
    ] {
        let size = frame.len();
        let twice = [&frame[..], &frame].concat();
        assert_eq!(plain::frames(&twice), if is_plain { 2 * size } else { 0 }, "{frame:?}");
        assert_eq!(plain::frames(&twice[..2 * size - 1]), if is_plain { size } else { 0 });
    }
}

/// Returns headers, most of them valid.
fn any_headers() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        4 => "[a-z\u{f6}]{0,9}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>(), 0..9),
    ];
    let text = prop::collection::vec(any::<u8>(), 0..200)
        .prop_map(|text| [&b"S"[..], &[0, 0, 0, text.len() as u8], &text].concat());
    let value = prop_oneof![
        4 => text,
        1 => Just(b"V".to_vec()),
        1 => any::<[u8; 8]>().prop_map(|bytes| [&b"l"[..], &bytes].concat()),
        1 => any::<[u8; 3]>().prop_map(|bytes| bytes.to_vec()),
        1 => (any::<bool>(), 0..100_usize)
            .prop_map(|(is_table, levels)| nested(if is_table { b'F' } else { b'A' }, levels)),
    ];
    let member = (name, value).prop_map(|(name, value)| [short(&name), value].concat());
    prop::collection::vec(member, 0..6).prop_map(|members| members.concat())
}

proptest! {
    #[test]
    fn whole_frames_are_repaired_as_single_bytes_are(
        headers in any_headers(), key in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let delivered = [&[0, 60, 0, 71][..], &[0x80; 9], &short(b"events"), &short(&key), &[0; 4]].concat();
        let stream = [frame(METHOD, &delivered), content_header(&headers), frame(3, &[0xff; 30])].concat();
        let expected = levelled(&stream, 1);
        prop_assert_eq!(levelled(&stream, usize::MAX), &expected[..]);
        prop_assert_eq!(levelled(&stream, 90), &expected[..]);
    }

    #[test]
    fn whatever_arrives_is_passed_on_and_the_next_frame_is_found(
        payload in prop::collection::vec(any::<u8>(), 0..200), with_headers in any::<bool>(), piece in 1usize..40,
    ) {
        let odd = if with_headers { content_header(&payload) } else { frame(CONTENT_HEADER, &payload) };
        let stream = [odd, content_header(&member(&nested(b'F', 200)))].concat();
        let found = levelled(&stream, piece);
        let header = content_header(&member(&nested(b'F', 200)));
        prop_assert_eq!(depth(headers_of(&found[found.len() - header.len()..]), true), LEVELS_MAX - 1);
    }
}
