//! Positions of the parts of a JSON text. Each array and each long object is parsed once.

use std::cell::{OnceCell, RefCell};
use std::rc::Rc;

use foldhash::fast::FixedState;
use foldhash::{HashMap, HashMapExt as _};

use super::budget::{Budget, Spent};
use crate::event::Json;
use crate::event::json::JsonKind;

/// Minimum length of an object with an index of its members, in bytes. A shorter object is parsed
/// each time.
const INDEXED_FROM_BYTES: usize = 256;

/// Start and end of a part, in bytes from the start of the whole.
type Place = (u32, u32);

/// Map by address. An event cannot choose addresses, so the hash needs no secret.
type ByAddress<T> = std::collections::HashMap<usize, T, FixedState>;

/// Positions of the parts of arrays and objects, by the address of their text.
///
/// An address is valid as long as the text, so this value must not outlive the texts. Most events
/// read neither arrays nor long objects, so the maps are made on first use.
#[derive(Default)]
pub(super) struct Places(OnceCell<Box<Known>>);

#[derive(Default)]
struct Known {
    arrays: RefCell<ByAddress<Rc<[Place]>>>,
    objects: RefCell<ByAddress<HashMap<Box<str>, Place>>>,
}

impl Places {
    fn known(&self) -> &Known {
        self.0.get_or_init(Box::default)
    }

    /// Returns the elements of an array, or none for other values.
    pub(super) fn elements<'j>(
        &self,
        of: Json<'j>,
        budget: &Budget,
    ) -> Result<Elements<'j>, Spent> {
        let address = of.text().as_ptr() as usize;
        if of.kind() != JsonKind::Array {
            return Ok(Elements { of, places: Rc::from([]) });
        }
        // Also for a known array: comparisons of lists look up each of them again and again.
        budget.work(4)?;
        let mut arrays = self.known().arrays.borrow_mut();
        if let Some(places) = arrays.get(&address) {
            return Ok(Elements { of, places: places.clone() });
        }
        budget.work(of.text().len() as u64 / 4)?;
        let elements = of.elements();
        budget.bytes(64 + elements.len() * size_of::<Place>())?;
        let places: Rc<[Place]> =
            elements.into_iter().map(|element| place_of(of, element)).collect();
        arrays.insert(address, places.clone());
        Ok(Elements { of, places })
    }

    /// Returns the last member of that name.
    pub(super) fn member<'j>(
        &self,
        of: Json<'j>,
        name: &str,
        budget: &Budget,
    ) -> Result<Option<Json<'j>>, Spent> {
        if of.kind() != JsonKind::Object {
            return Ok(None);
        }
        let length = of.text().len();
        if length < INDEXED_FROM_BYTES {
            budget.work(4 + length as u64 / 8)?;
            return Ok(of.get(name));
        }
        budget.work(8)?;
        let mut objects = self.known().objects.borrow_mut();
        let address = of.text().as_ptr() as usize;
        let places = match objects.entry(address) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(unknown) => {
                budget.work(length as u64)?;
                let members = of.members();
                budget.bytes(members.iter().map(|(name, _)| 48 + name.len()).sum())?;
                let mut places = HashMap::with_capacity(members.len());
                for (name, value) in members {
                    places.insert(Box::from(&*name), place_of(of, value));
                }
                unknown.insert(places)
            }
        };
        Ok(places.get(name).map(|&place| part_of(of, place)))
    }
}

/// The elements of an array.
#[derive(Clone)]
pub(super) struct Elements<'j> {
    of: Json<'j>,
    places: Rc<[Place]>,
}

impl<'j> Elements<'j> {
    /// Returns the number of elements.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Returns the element at that index.
    pub(super) fn get(&self, at: usize) -> Option<Json<'j>> {
        self.places.get(at).map(|&place| part_of(self.of, place))
    }

    /// Returns every element, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Json<'j>> + '_ {
        self.places.iter().map(|&place| part_of(self.of, place))
    }
}

fn place_of(of: Json<'_>, part: Json<'_>) -> Place {
    let from = part.text().as_ptr() as usize - of.text().as_ptr() as usize;
    // A body of 4 GiB is refused long before.
    let narrow = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
    (narrow(from), narrow(from + part.text().len()))
}

fn part_of(of: Json<'_>, (from, to): Place) -> Json<'_> {
    of.part(from as usize..to as usize)
}
