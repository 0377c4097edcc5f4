//! A JSON Schema of the configuration, for editors: they complete keys, show what they mean, and underline
//! what is wrong while it is typed.
//!
//! `schema.json` is written by hand, because what an editor shows is prose. What the program has as a list
//! is filled in from there: schedulers, modes, flags, states, kinds of checks. All the rest is held
//! against the reader by this module's tests, key by key and value by value: whoever adds a key to a
//! `known(&[...])`, or a kind to `checks`, is told what the schema lacks.
//!
//! A schema cannot say everything: what contradicts something elsewhere in the file, and a time that is out of range
//! when it is a string, is found by `rvs check` alone.

mod patterns;

use dataplane::service::{
    Helper, MAX_TIMEOUT_SECONDS, Mode, Protocol, Scheduler, SchedulerFlag, State, Track,
};
use serde_json::{Map, Value, json};

use self::patterns::patterns;
use super::check::names;
use super::{checks, sync};

/// The schema, in the dialect 2020-12.
pub fn schema() -> Value {
    let mut schema: Value = serde_json::from_str(include_str!("schema.json")).expect("a test reads it");
    let definitions = &mut schema["$defs"];
    let service = &mut definitions["service"]["properties"];
    service["protocol"]["enum"] = json!(names(Protocol::ALL));
    service["helper"]["enum"] = json!(names(Helper::ALL));
    service["track"]["enum"] = json!(names(Track::ALL));
    service["mode"]["enum"] = json!(names(Mode::ALL));
    service["scheduler"]["enum"] = json!(names(Scheduler::ALL));
    service["flags"]["items"]["enum"] = json!(names(SchedulerFlag::ALL));
    for (name, pattern) in patterns() {
        definitions[name]["pattern"] = json!(pattern);
    }
    let property = |state: State| (state.timeout_key(), timeout(state));
    let told: Vec<String> = sync::states().map(State::timeout_key).collect();
    definitions["sync"]["properties"]["states"]["items"]["enum"] = json!(told);
    definitions["timeouts"]["properties"] =
        Protocol::ALL.iter().flat_map(|&protocol| State::of_protocol(protocol)).map(property).collect();
    let common = definitions["check"].take();
    let kinds = definitions["checks"].take();
    definitions["check"] = json!({ "anyOf": checks::kinds().map(|kind| check(&common, kind, &kinds[kind])).collect::<Vec<_>>() });
    if let Some(definitions) = definitions.as_object_mut() {
        definitions.remove("checks");
    }
    schema
}

fn timeout(state: State) -> Value {
    json!({
        "description": format!("{state}, {} s by default.", state.default_timeout()),
        "$ref": "#/$defs/time",
        "minimum": 1,
        "maximum": MAX_TIMEOUT_SECONDS,
        "default": format!("{}s", state.default_timeout()),
    })
}

/// What all checks have in common with what is this kind's own: editors complete best from a flat list of keys.
fn check(common: &Value, kind: &str, own: &Value) -> Value {
    let mut merged = common.clone();
    let mut properties = Map::new();
    properties.insert("kind".to_owned(), kind_property(kind));
    for part in [&common["properties"], &own["properties"]] {
        properties.extend(part.as_object().cloned().unwrap_or_default());
    }
    merged["properties"] = Value::Object(properties);
    merged["description"] = own["description"].clone();
    let mut required = own["required"].as_array().cloned().unwrap_or_default();
    // Without a kind it is the first one.
    if checks::kinds().next() != Some(kind) {
        required.push(json!("kind"));
    }
    merged["required"] = Value::Array(required);
    if own["dependentRequired"].is_object() {
        merged["dependentRequired"] = own["dependentRequired"].clone();
    }
    merged
}

fn kind_property(kind: &str) -> Value {
    let mut property = json!({ "description": "What is done.", "const": kind });
    if checks::kinds().next() == Some(kind) {
        property["default"] = json!(kind);
    }
    property
}

#[cfg(test)]
mod tests;
