//! One kind's facts, kept current from a watch. Decides nothing: it stores what a projection makes of each object.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};

use super::facts::Key;

/// Facts by namespace and name.
#[derive(Debug)]
pub struct Table<T> {
    rows: RwLock<BTreeMap<Key, T>>,
    arriving: RwLock<BTreeMap<Key, T>>,
    synced: AtomicBool,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: RwLock::default(),
            arriving: RwLock::default(),
            synced: AtomicBool::new(false),
        }
    }
}

impl<T: Clone> Table<T> {
    /// Takes in one event of a watch. A new list replaces the old rows only when it is complete. Returns the row that was there before
    /// an object was written, if both are known.
    pub fn absorb<K: Resource>(&self, event: Event<K>, project: impl Fn(&K) -> Option<T>) -> Option<(T, T)> {
        match event {
            Event::Init => {
                self.arriving.write().unwrap_or_else(PoisonError::into_inner).clear();
                None
            }
            Event::InitApply(object) => {
                if let Some(row) = project(&object) {
                    self.arriving
                        .write()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(key(&object), row);
                }
                None
            }
            Event::InitDone => {
                let arrived = std::mem::take(&mut *self.arriving.write().unwrap_or_else(PoisonError::into_inner));
                *self.rows.write().unwrap_or_else(PoisonError::into_inner) = arrived;
                self.synced.store(true, Ordering::SeqCst);
                None
            }
            Event::Apply(object) => {
                let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
                let Some(row) = project(&object) else {
                    rows.remove(&key(&object));
                    return None;
                };
                let before = rows.insert(key(&object), row.clone());
                before.map(|before| (before, row))
            }
            Event::Delete(object) => {
                self.rows
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&key(&object));
                None
            }
        }
    }

    /// The same for a kind of which some objects may be unreadable: one that was read before keeps its row, one that never was has none.
    pub fn absorb_readable<K: Resource>(
        &self,
        event: Event<DeserializeGuard<K>>,
        project: impl Fn(&K) -> Option<T>,
    ) -> Option<(T, T)> {
        match &event {
            Event::Apply(object) if object.0.is_err() => None,
            _ => self.absorb(event, |object| project(object.0.as_ref().ok()?)),
        }
    }

    /// Whether a whole list has arrived.
    pub fn synced(&self) -> bool {
        self.synced.load(Ordering::SeqCst)
    }

    /// A copy of all rows.
    pub fn rows(&self) -> BTreeMap<Key, T> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn map(name: &str, version: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(version.into());
        map
    }

    fn version(map: &ConfigMap) -> Option<String> {
        map.metadata
            .resource_version
            .clone()
            .filter(|version| version != "none")
    }

    fn all(table: &Table<String>) -> Vec<(String, String)> {
        table
            .rows()
            .into_iter()
            .map(|((_, name), version)| (name, version))
            .collect()
    }

    #[test]
    fn rows_follow_their_objects_and_go_with_them() {
        let table = Table::default();
        assert!(!table.synced());
        table.absorb(Event::Init, version);
        table.absorb(Event::InitApply(map("a", "1")), version);
        assert!(all(&table).is_empty(), "an incomplete list shows nothing");
        table.absorb(Event::<ConfigMap>::InitDone, version);
        assert!(table.synced());
        assert_eq!(table.absorb(Event::Apply(map("b", "2")), version), None);
        assert_eq!(
            table.absorb(Event::Apply(map("b", "3")), version),
            Some(("2".into(), "3".into()))
        );
        assert_eq!(all(&table), [("a".into(), "1".into()), ("b".into(), "3".into())]);
        table.absorb(Event::Delete(map("b", "3")), version);
        table.absorb(Event::Apply(map("a", "none")), version);
        assert!(all(&table).is_empty());
    }

    #[test]
    fn one_unreadable_object_leaves_the_others_and_its_own_former_row() {
        let read = |name: &str, data: &str| {
            let raw = serde_json::json!({"metadata": {"name": name, "resourceVersion": "1"}, "data": {"a": data}});
            let odd = serde_json::json!({"metadata": {"name": name}, "data": 7});
            let value = if data.is_empty() { odd } else { raw };
            serde_json::from_value::<DeserializeGuard<ConfigMap>>(value).unwrap()
        };
        let table = Table::default();
        table.absorb_readable(Event::Init, version);
        table.absorb_readable(Event::InitApply(read("a", "x")), version);
        table.absorb_readable(Event::InitApply(read("odd", "")), version);
        table.absorb_readable(Event::<DeserializeGuard<ConfigMap>>::InitDone, version);
        assert!(table.synced(), "one object must not keep the list from arriving");
        table.absorb_readable(Event::Apply(read("a", "")), version);
        assert_eq!(all(&table), [("a".into(), "1".into())]);
        table.absorb_readable(Event::Delete(read("a", "")), version);
        assert!(all(&table).is_empty());
    }

    #[test]
    fn a_new_list_drops_what_it_no_longer_has() {
        let table = Table::default();
        for list in [&["a", "b"][..], &["b"]] {
            table.absorb(Event::<ConfigMap>::Init, version);
            for name in list {
                table.absorb(Event::InitApply(map(name, "1")), version);
            }
            table.absorb(Event::<ConfigMap>::InitDone, version);
        }
        assert_eq!(all(&table), [("b".into(), "1".into())]);
    }
}
