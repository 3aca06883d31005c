//! Results of the `cel` crate, with which our own evaluation is compared.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use cel::common::traits::{self, Container, Indexer, Iterable, Sizer};
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt, MAP_TYPE,
    Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{Context, ExecutionError};

use super::super::expression::ENV;
use super::super::fault::Fault;
use crate::event::Json;
use crate::event::json::{JsonKind, write_string};

/// Returns the JSON of an expression's value. With `eager`, an object of the event may equal a map
/// of the expression.
pub(super) fn answer(text: &str, data: &str, previous: &str, eager: bool) -> Result<String, Fault> {
    let (ast, _) = ENV.parser().parse_with_source_info(text).map_err(|_| Fault::new("syntax"))?;
    let mut context = Context::with_env(ENV.clone());
    let event = HashMap::from([
        (
            CelMapKey::from("time".to_owned()),
            Box::new(CelString::from("2026-01-02T03:04:05Z")) as Box<dyn Val>,
        ),
        (CelMapKey::from("position".to_owned()), Box::new(CelInt::from(9)) as Box<dyn Val>),
    ]);
    context.add_variable_as_val("data", cel_value(Json::trusted(data), eager));
    context.add_variable_as_val("previous", cel_value(Json::trusted(previous), eager));
    context.add_variable_as_val("event", Box::new(CelMap::from(event)));
    let value = cel::Value::resolve_val(&ast, &context).map_err(|error| Fault::of_cel(&error))?;
    let mut json = String::new();
    write_json(value.as_ref(), &mut json).map_err(|what| Fault::no_json(&what))?;
    Ok(json)
}

/// Converts JSON to a CEL value. With `eager`, objects become CEL's own maps, which can equal a map
/// of the expression.
pub(super) fn cel_value(json: Json<'_>, eager: bool) -> Box<dyn Val> {
    if eager {
        return eager_value(json);
    }
    let document: Arc<str> = json.text().into();
    let whole = Json::trusted(&document);
    lazy_value(&document, whole)
}

fn lazy_value(document: &Arc<str>, json: Json<'_>) -> Box<dyn Val> {
    match json.kind() {
        JsonKind::Object => {
            let from = json.text().as_ptr() as usize - document.as_ptr() as usize;
            let to = from + json.text().len();
            Box::new(CelObject(Arc::new(Object {
                document: document.clone(),
                from,
                to,
                members: OnceLock::new(),
            })))
        }
        JsonKind::Array => Box::new(CelList::from(
            json.elements().into_iter().map(|json| lazy_value(document, json)).collect::<Vec<_>>(),
        )),
        _ => scalar(json),
    }
}

fn eager_value(json: Json<'_>) -> Box<dyn Val> {
    match json.kind() {
        JsonKind::Object => {
            let members = json.members().into_iter();
            Box::new(CelMap::from(
                members
                    .map(|(name, json)| (CelMapKey::from(name.into_owned()), eager_value(json)))
                    .collect::<HashMap<_, _>>(),
            ))
        }
        JsonKind::Array => Box::new(CelList::from(
            json.elements().into_iter().map(eager_value).collect::<Vec<_>>(),
        )),
        _ => scalar(json),
    }
}

/// Converts a scalar: an integer to `int`, to `uint` if it is too large for that, any other number
/// to `double`.
fn scalar(json: Json<'_>) -> Box<dyn Val> {
    match json.kind() {
        JsonKind::Bool => Box::new(CelBool::from(json.as_bool().unwrap_or_default())),
        JsonKind::String => {
            Box::new(CelString::from(json.as_str().unwrap_or_default().into_owned()))
        }
        JsonKind::Number => {
            let text = json.text();
            if let Ok(int) = text.parse::<i64>() {
                Box::new(CelInt::from(int))
            } else if let Ok(uint) = text.parse::<u64>() {
                Box::new(CelUInt::from(uint))
            } else {
                Box::new(CelDouble::from(
                    text.parse::<f64>().unwrap_or_default().clamp(f64::MIN, f64::MAX),
                ))
            }
        }
        JsonKind::Null | JsonKind::Array | JsonKind::Object => Box::new(CelNull),
    }
}

/// Appends a CEL value as JSON.
///
/// # Errors
/// The CEL type that JSON lacks.
pub(super) fn write_json(value: &dyn Val, out: &mut String) -> Result<(), String> {
    if let Some(object) = value.downcast_ref::<CelObject>() {
        out.push_str(object.0.json().text());
    } else if let Some(text) = value.downcast_ref::<CelString>() {
        write_string(text.inner(), out);
    } else if let Some(int) = value.downcast_ref::<CelInt>() {
        out.push_str(&int.inner().to_string());
    } else if let Some(uint) = value.downcast_ref::<CelUInt>() {
        out.push_str(&uint.inner().to_string());
    } else if let Some(double) = value.downcast_ref::<CelDouble>() {
        // Beyond 2^53 a double does not identify an integer, and would make a wrong key.
        if double.inner().abs() >= 9_007_199_254_740_992.0 {
            return Err("a double beyond 2^53, which is not exact".to_owned());
        }
        let number =
            serde_json::Number::from_f64(*double.inner()).ok_or("a double that is not a number")?;
        out.push_str(&number.to_string());
    } else if let Some(bool) = value.downcast_ref::<CelBool>() {
        out.push_str(if *bool.inner() { "true" } else { "false" });
    } else if value.downcast_ref::<CelNull>().is_some() {
        out.push_str("null");
    } else if let Some(list) = value.downcast_ref::<CelList>() {
        out.push('[');
        for (at, element) in list.inner().iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            write_json(element.as_ref(), out)?;
        }
        out.push(']');
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        write_map(map, out)?;
    } else {
        return Err(format!("a {}", value.get_type().name()));
    }
    Ok(())
}

fn write_map(map: &CelMap<'_>, out: &mut String) -> Result<(), String> {
    let mut definitions: Vec<_> = map.inner().iter().collect();
    // CEL's maps have no order.
    definitions.sort_by_key(|(key, _)| *key);
    out.push('{');
    for (at, (key, value)) in definitions.into_iter().enumerate() {
        let CelMapKey::String(name) = key else {
            return Err("a map with keys that are not strings".to_owned());
        };
        if at > 0 {
            out.push(',');
        }
        write_string(name.inner(), out);
        out.push(':');
        write_json(value.as_ref(), out)?;
    }
    out.push('}');
    Ok(())
}

/// A JSON object, which is a `map` to CEL.
#[derive(Clone)]
pub(super) struct CelObject(Arc<Object>);

struct Object {
    document: Arc<str>,
    from: usize,
    to: usize,
    members: OnceLock<Vec<(CelString<'static>, Box<dyn Val>)>>,
}

impl Object {
    fn json(&self) -> Json<'_> {
        Json::trusted(&self.document[self.from..self.to])
    }

    /// Returns the members in order. The last member of a name counts.
    fn members(&self) -> &[(CelString<'static>, Box<dyn Val>)] {
        self.members.get_or_init(|| {
            let all = self.json().members();
            let mut last: HashMap<&str, usize> = HashMap::with_capacity(all.len());
            for (at, (name, _)) in all.iter().enumerate() {
                last.insert(name, at);
            }
            let counts = |at: &usize| last.get(&*all[*at].0) == Some(at);
            (0..all.len())
                .filter(counts)
                .map(|at| {
                    (CelString::from(all[at].0.to_string()), lazy_value(&self.document, all[at].1))
                })
                .collect()
        })
    }

    fn find(&self, name: &str) -> Option<&(dyn Val + 'static)> {
        self.members()
            .iter()
            .find(|(known, _)| known.inner() == name)
            .map(|(_, value)| value.as_ref())
    }
}

/// Shows no values.
impl fmt::Debug for CelObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("map")
    }
}

impl StaticVal for CelObject {}

impl Val for CelObject {
    fn get_type(&self) -> &Type {
        <Self as Val>::cel_type()
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_iterable<'b, 'v>(&'b self) -> Option<&'b (dyn Iterable + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        let Some(other) = other.downcast_ref::<CelObject>() else { return false };
        let (ours, theirs) = (self.0.members(), other.0.members());
        ours.len() == theirs.len()
            && ours.iter().all(|(name, value)| {
                other.0.find(name.inner()).is_some_and(|other| value.as_ref().equals(other))
            })
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl Container for CelObject {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(key.downcast_ref::<CelString>().is_some_and(|name| self.0.find(name.inner()).is_some()))
    }
}

impl Indexer for CelObject {
    fn get<'b, 'v>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'v>, ExecutionError>
    where
        Self: 'v,
    {
        let name = key.downcast_ref::<CelString>().map(CelString::inner).unwrap_or_default();
        match self.0.find(name) {
            Some(value) => Ok(CowVal::Borrowed(value)),
            None => Err(ExecutionError::no_such_key("")),
        }
    }

    fn steal<'v>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(key).map(CowVal::into_owned)
    }
}

impl Iterable for CelObject {
    fn iter<'b, 'v>(&'b self) -> Box<dyn traits::Iterator<'b, 'v> + 'b>
    where
        Self: 'v,
    {
        Box::new(NameIterator(self.0.members().iter()))
    }
}

struct NameIterator<'b>(std::slice::Iter<'b, (CelString<'static>, Box<dyn Val>)>);

impl<'b, 'v> traits::Iterator<'b, 'v> for NameIterator<'b> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'v)> {
        self.0.next().map(|(name, _)| name as &(dyn Val + 'v))
    }
}

impl Sizer for CelObject {
    fn size(&self) -> CelInt {
        i64::try_from(self.0.members().len()).unwrap_or(i64::MAX).into()
    }
}
