//! Whether a JSON text says each field once. A field has two spellings (`maxUses` and `max_uses`), and of two values the last would hold:
//! whoever checks what passes, and knows the other spelling or takes the first value, would be told another request than the one done.

use std::{collections::BTreeSet, fmt};

use prost_reflect::{FieldDescriptor, MessageDescriptor};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A value of JSON, read for its names only.
#[derive(Clone)]
pub(super) enum Once {
    /// A message, or a list of them.
    Message(MessageDescriptor),
    /// A map with values of this kind.
    Map(Box<Self>),
    /// Anything without fields.
    Plain,
}

impl Once {
    fn of(field: &FieldDescriptor) -> Self {
        let kind = field.kind();
        match kind.as_message() {
            Some(entry) if field.is_map() => Self::Map(Box::new(Self::of(&entry.map_entry_value_field()))),
            Some(message) => Self::Message(message.clone()),
            None => Self::Plain,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Once {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        match self {
            Self::Plain => value.deserialize_ignored_any(IgnoredAny).map(|_| ()),
            Self::Message(_) | Self::Map(_) => value.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let (name, value) = match &self {
                Self::Message(message) => {
                    let field =
                        message.get_field_by_json_name(&key).or_else(|| message.get_field_by_name(&key));
                    // What is no field is somebody's who reads the text itself (`google.protobuf.Struct`).
                    let value = field.as_ref().map_or(Self::Plain, Self::of);
                    (field.map_or(key, |field| field.json_name().to_owned()), value)
                }
                Self::Map(value) => (key, (**value).clone()),
                Self::Plain => (key, Self::Plain),
            };
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("{name} is said twice")));
            }
            seen.insert(name);
            map.next_value_seed(value)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.clone())?.is_some() {}
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::json::methods;

    /// Whether each field is said once in an answer of this method.
    fn is_once(path: &str, text: &str) -> bool {
        let message = methods::of(path).unwrap().output();
        Once::Message(message).deserialize(&mut serde_json::Deserializer::from_str(text)).is_ok()
    }

    #[test]
    fn a_field_said_twice_is_found_in_lists_and_maps() {
        let list = |text: &str| is_once("/ringmesh.admin.v1.EventService/ListEvents", text);
        assert!(list(r#"{"events":[{"details":{"a":"x","b":"y"}},{"details":{"a":"x"}}]}"#));
        assert!(!list(r#"{"events":[{"kind":"x"},{"details":{},"details":{}}]}"#));
        assert!(!list(r#"{"events":[{"details":{"a":"x","a":"y"}}]}"#));
        assert!(list(r#"{"events":[{"details":{"network_id":"x","networkId":"y"}}]}"#), "no field's name");
        assert!(!list(&format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000))), "deep, and no overflow");
    }
}
