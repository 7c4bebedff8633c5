//! An event as filters see it.

use super::FilterError;
use crate::event::{Data, Event};
use cel::{
    Context, Env,
    common::{
        types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
        value::Val,
    },
};
use serde::{
    Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock},
};

/// Largest JSON of an event that filters look into, in bytes.
pub const MAX_DATA_BYTES: usize = 256 * 1024;
/// Most values in it, members' names included. Reading them takes a few milliseconds.
pub const MAX_DATA_VALUES: u64 = 50_000;
/// Text that is read for the price of one step, in bytes.
pub(super) const UNIT_BYTES: u64 = 128;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// An event as filters see it. Made once for all the filters of an event; its data is read when the first of them asks.
pub struct Subject<'e> {
    event: &'e Event<'e>,
    /// What a filter is evaluated in.
    pub(super) context: Context<'e, 'e>,
    /// Size of the attributes.
    pub(super) attributes: Size,
    data: Option<Result<Size, FilterError>>,
}

/// How much there is to look at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    /// Values, members' names included.
    pub(super) values: u64,
    /// Bytes of the JSON, or of the text.
    pub(super) bytes: u64,
    /// Elements of the longest list or object.
    pub(super) widest: u64,
}

impl Size {
    /// Steps that it takes to read all of it.
    pub(super) fn steps(self) -> u64 {
        1 + self.values + self.bytes / UNIT_BYTES
    }

    /// Whether nothing of it is larger.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.values <= other.values && self.bytes <= other.bytes && self.widest <= other.widest
    }

    /// Takes in a list or an object.
    fn has(&mut self, elements: usize) {
        self.widest = self.widest.max(elements as u64);
    }

    /// Counts one more value.
    fn count<E: de::Error>(&mut self) -> Result<(), E> {
        self.values += 1;
        if self.values > MAX_DATA_VALUES { Err(E::custom("too many values")) } else { Ok(()) }
    }
}

impl<'e> Subject<'e> {
    /// The attributes of an event; its data is left for later.
    pub fn new(event: &'e Event<'e>) -> Self {
        let mut context = Context::with_env(Arc::clone(&ENVIRONMENT));
        let (attributes, map) = attributes(event);
        context.add_variable_as_val("event", Box::new(CelMap::from(map)));
        Self { event, context, attributes, data: None }
    }

    /// Reads the data, once, and says how large it is.
    pub(super) fn open_data(&mut self) -> Result<Size, FilterError> {
        if let Some(size) = &self.data {
            return size.clone();
        }
        let opened = read(&self.event.data);
        let size = opened.map(|(size, value)| {
            self.context.add_variable_as_val("data", value);
            size
        });
        self.data.insert(size).clone()
    }
}

type Members<'e> = HashMap<CelMapKey<'e>, Box<dyn Val + 'e>>;

fn attributes<'e>(event: &'e Event<'e>) -> (Size, Members<'e>) {
    let (mut attributes, mut bytes) = (Members::new(), 0);
    let mut put = |name: &'e str, value: &'e str| {
        bytes += value.len() as u64;
        attributes.insert(name.into(), Box::new(CelString::from(value)));
    };
    put("id", &event.id);
    put("source", &event.source);
    put("type", &event.event_type);
    let optional = [
        ("time", &event.time),
        ("subject", &event.subject),
        ("datacontenttype", &event.datacontenttype),
        ("dataschema", &event.dataschema),
        ("partitionkey", &event.partitionkey),
        ("traceparent", &event.traceparent),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            put(name, value);
        }
    }
    for (name, value) in &event.extensions {
        bytes += value.get().len() as u64;
        // They were checked to be text, booleans and small integers.
        if let Ok(value) =
            serde_json::Deserializer::from_str(value.get()).deserialize_any(JsonVisitor(&mut Size::default()))
        {
            attributes.insert(name.as_ref().into(), value);
        }
    }
    let count = attributes.len() as u64;
    (Size { values: 2 * count, bytes, widest: count }, attributes)
}

/// The data as a value of CEL, and its size.
fn read<'e>(data: &'e Data<'e>) -> Result<(Size, Box<dyn Val + 'e>), FilterError> {
    let Data::Json(raw) = data else { return Ok((Size::default(), Box::new(CelNull))) };
    let json = raw.get();
    if json.len() > MAX_DATA_BYTES {
        return Err(FilterError::DataTooLarge);
    }
    let mut size = Size { bytes: json.len() as u64, ..Size::default() };
    match serde_json::Deserializer::from_str(json).deserialize_any(JsonVisitor(&mut size)) {
        Ok(value) => Ok((size, value)),
        Err(_) if size.values > MAX_DATA_VALUES => Err(FilterError::DataTooLarge),
        Err(_) => Err(FilterError::UnreadableData),
    }
}

/// Reads JSON into values that borrow its text. `serde_json` bounds the depth.
struct JsonVisitor<'s>(&'s mut Size);

impl<'de> DeserializeSeed<'de> for JsonVisitor<'_> {
    type Value = Box<dyn Val + 'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonVisitor<'_> {
    type Value = Box<dyn Val + 'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Box::new(CelNull))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Box::new(CelBool::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Box::new(CelInt::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        // Numbers are written without a `u` in filters: an unsigned one is only what would not fit otherwise.
        Ok(match i64::try_from(value) {
            Ok(value) => Box::new(CelInt::from(value)),
            Err(_) => Box::new(CelUInt::from(value)),
        })
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Box::new(CelDouble::from(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(Cow::<'de, str>::Owned(value.to_owned()))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut values: Vec<Box<dyn Val + 'de>> = Vec::new();
        while let Some(value) = list.next_element_seed(JsonVisitor(&mut *self.0))? {
            self.0.count()?;
            values.push(value);
        }
        self.0.has(values.len());
        Ok(Box::new(CelList::from(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut values = Members::new();
        while let Some(name) = object.next_key::<String>()? {
            let value = object.next_value_seed(JsonVisitor(&mut *self.0))?;
            // Its name and itself.
            self.0.count()?;
            self.0.count()?;
            if values.insert(name.into(), value).is_some() {
                return Err(de::Error::custom("a name twice"));
            }
        }
        self.0.has(values.len());
        Ok(Box::new(CelMap::from(values)))
    }
}
