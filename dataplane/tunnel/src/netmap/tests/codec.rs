//! The form of records: what a reader skips, what it refuses, and that it never panics.

use proptest::prelude::*;

use super::super::codec::{Fields, Reader, Writer};
use super::*;

/// A record of the fields 1 and 3, and what a reader that knows just those makes of it.
fn read(bytes: &[u8]) -> Result<(u64, Option<u8>), RecordError> {
    let mut fields = Fields::new(bytes)?;
    let one = fields.u64(1, "one")?;
    let three = fields.option(3, "three")?.map(u8::from_be_bytes);
    fields.end()?;
    Ok((one, three))
}

fn record(fields: &[(u8, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::record();
    fields.iter().for_each(|(tag, value)| writer.field(*tag, "any", value).unwrap());
    writer.end(usize::MAX).unwrap()
}

const ONE: (u8, &[u8]) = (1, &[0, 0, 0, 0, 0, 0, 0, 9]);

#[test]
fn fields_are_a_tag_a_length_and_a_value() {
    assert_eq!(record(&[ONE, (3, &[7])]), [1, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 9, 3, 0, 1, 7]);
    assert_eq!(read(&record(&[ONE, (3, &[7])])), Ok((9, Some(7))));
    assert_eq!(read(&record(&[ONE])), Ok((9, None)));
}

#[test]
fn unknown_field_is_skipped_if_low_and_refused_if_high() {
    for low in [0, 2, 4, 0x7f] {
        let mut fields = vec![ONE, (3, [7].as_slice()), (low, b"what")];
        fields.sort_unstable();
        assert_eq!(read(&record(&fields)), Ok((9, Some(7))), "{low}");
    }
    for tag in [0x80, 0x81, 0xff] {
        assert_eq!(read(&record(&[ONE, (3, &[7]), (tag, b"what")])), Err(RecordError::Critical { tag }));
        assert_eq!(read(&record(&[ONE, (tag, b"")])), Err(RecordError::Critical { tag }));
    }
}

#[test]
fn high_field_before_a_known_one_is_refused_too() {
    let bytes = record(&[(0x80, b"must")]);
    let mut fields = Fields::new(&bytes).unwrap();
    assert_eq!(fields.get(0x90), Err(RecordError::Critical { tag: 0x80 }));
}

#[test]
fn fields_repeated_or_out_of_order_are_refused() {
    assert_eq!(read(&record(&[ONE, ONE])), Err(RecordError::Order { tag: 1 }));
    assert_eq!(read(&record(&[(3, &[7]), ONE])), Err(RecordError::Missing { field: "one" }));
    assert_eq!(read(&record(&[ONE, (3, &[7]), (2, &[])])), Err(RecordError::Order { tag: 2 }));
    assert_eq!(read(&record(&[ONE, (2, &[]), (2, &[])])), Err(RecordError::Order { tag: 2 }));
}

#[test]
fn another_version_is_refused_with_the_cure() {
    for version in [0, 2, 255] {
        let mut bytes = record(&[ONE]);
        bytes[0] = version;
        assert_eq!(read(&bytes), Err(RecordError::Version { found: version }));
    }
    assert!(RecordError::Version { found: 2 }.to_string().contains("update this program"));
}

#[test]
fn record_cut_anywhere_is_refused() {
    let bytes = record(&[ONE, (3, &[7])]);
    for length in 0..bytes.len() {
        let whole_field = length == bytes.len() - 4;
        assert_eq!(read(&bytes[..length]).is_ok(), whole_field, "{length} bytes");
    }
}

#[test]
fn value_of_another_width_is_refused() {
    for value in [&[][..], &[0; 7], &[0; 9]] {
        assert!(matches!(read(&record(&[(1, value)])), Err(RecordError::Value { field: "one", .. })));
    }
}

#[test]
fn list_reaches_its_bound_and_not_beyond() {
    let read = |bytes: &[u8]| Fields::new(bytes)?.list(1, "list", 3, Reader::u8);
    assert_eq!(read(&record(&[(1, &[5, 6, 7])])), Ok(vec![5, 6, 7]));
    assert_eq!(read(&record(&[(1, &[5, 6, 7, 8])])), Err(RecordError::TooMany { field: "list", most: 3 }));
    assert_eq!(read(&record(&[])), Ok(Vec::new()));
    // An empty list has one form: none.
    assert_eq!(read(&record(&[(1, &[])])), Err(RecordError::Truncated));
    let mut writer = Writer::record();
    let put = |bytes: &mut Vec<u8>, item: &u8| {
        bytes.push(*item);
        Ok(())
    };
    assert_eq!(writer.list(1, "list", 3, &[0; 4], put), Err(RecordError::TooMany { field: "list", most: 3 }));
    assert_eq!(writer.list(1, "list", 3, &[], put), Ok(()));
    assert_eq!(writer.end(16), Ok(vec![1]));
}

#[test]
fn field_too_long_for_its_length_cannot_be_written() {
    let mut writer = Writer::record();
    assert_eq!(writer.field(1, "all", &[0; 65_535]), Ok(()));
    let error = writer.field(2, "all", &[0; 65_536]);
    assert_eq!(error, Err(RecordError::TooMany { field: "all", most: 65_535 }));
    assert_eq!(writer.end(65_538), Err(RecordError::TooMany { field: "record", most: 65_538 }));
}

#[test]
fn envelope_is_refused_if_cut_long_or_no_envelope() {
    let network = Network::new();
    let envelope = network.admit(&network.member(2));
    let bytes = envelope.emit();
    assert_eq!(Envelope::parse(&bytes), Ok(envelope.clone()));
    for length in 0..bytes.len() {
        assert_eq!(Envelope::parse(&bytes[..length]), Err(EnvelopeError::Truncated), "{length} bytes");
    }
    assert_eq!(Envelope::parse(&[bytes.clone(), vec![0]].concat()), Err(EnvelopeError::Truncated));
    let parts = |kind, payload: Vec<u8>, signer: &[u8], signature: &[u8]| {
        Envelope::from_parts(kind, payload, signer, signature)
    };
    let (signer, signature) = (envelope.signer.as_bytes(), envelope.signature.as_bytes());
    assert_eq!(parts(2, envelope.payload.clone(), signer, signature), Ok(envelope.clone()));
    for kind in [0, 7, 256 + 2] {
        assert_eq!(parts(kind, Vec::new(), signer, signature), Err(EnvelopeError::Kind { found: kind }));
    }
    assert!(matches!(parts(2, Vec::new(), &[0; 32], signature), Err(EnvelopeError::Signer(_))));
    assert!(matches!(parts(2, Vec::new(), &signer[1..], signature), Err(EnvelopeError::Signer(_))));
    assert_eq!(parts(2, Vec::new(), signer, &signature[1..]), Err(EnvelopeError::Signature));
    assert!(parts(2, vec![0; PAYLOAD_MAX], signer, signature).is_ok());
    let found = PAYLOAD_MAX + 1;
    assert_eq!(parts(2, vec![0; found], signer, signature), Err(EnvelopeError::TooLong { found }));
    let long = Envelope { payload: vec![0; found], ..envelope };
    assert_eq!(Envelope::parse(&long.emit()), Err(EnvelopeError::TooLong { found }));
}

#[test]
fn length_that_promises_more_than_there_is_sets_nothing_aside() {
    let network = Network::new();
    let mut bytes = network.admit(&network.member(2)).emit();
    bytes[97..101].copy_from_slice(&u32::MAX.to_be_bytes());
    assert_eq!(Envelope::parse(&bytes), Err(EnvelopeError::Truncated));
}

fn parse_everything(bytes: &[u8]) {
    let network = Network::new();
    let _ = Certificate::parse(bytes);
    let _ = Member::parse(bytes);
    let _ = Policy::parse(bytes);
    let _ = Head::parse(bytes);
    let _ = NodeRecord::parse(bytes);
    let _ = Statement::parse(bytes);
    let _ = Leaf::parse(bytes);
    let _ = Envelope::parse(bytes);
    let _ = NetworkMap::parse(bytes, network.id(), network.root_key(), node_id(ME), NOW);
}

/// One good form of everything there is to parse.
fn good_forms() -> Vec<Vec<u8>> {
    let network = Network::new();
    let mut forms: Vec<_> = leaves().iter().map(|leaf| leaf.emit().unwrap()).collect();
    forms.push(network.certificate(Role::Head).emit().unwrap());
    forms.push(network.member(2).emit().unwrap());
    forms.push(network.policy_of(&rules(&[]).0, 1).emit().unwrap());
    forms.push(network.head_of(Position::default(), [3; 32]).emit().unwrap());
    forms.push(network.node_record(2, 1).emit().unwrap());
    forms.push(network.full().head.emit());
    forms
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..512), versioned: bool) {
        if let (true, Some(first)) = (versioned, bytes.first_mut()) {
            *first = 1;
        }
        parse_everything(&bytes);
    }

    #[test]
    fn random_fields_never_panic(fields in prop::collection::btree_map(any::<u8>(), prop::collection::vec(any::<u8>(), 0..40), 0..16)) {
        let fields: Vec<_> = fields.iter().map(|(tag, value)| (*tag, value.as_slice())).collect();
        parse_everything(&record(&fields));
    }

    #[test]
    fn mutations_never_panic(
        form in 0..good_forms().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts: bool,
    ) {
        let mut bytes = good_forms().remove(form);
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        parse_everything(&bytes);
    }
}
