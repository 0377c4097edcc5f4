//! `GET /v1/openapi.json`: the admin API described for programs, as OpenAPI 3.1.
//!
//! `openapi.json` is written by hand, because a description is prose and the types are few. What the program has elsewhere
//! is filled in from there: its version, and the settings of a service, which are those of the configuration's schema. All
//! the rest is held against the server by this module's tests: paths, methods, parameters, statuses, bodies and answers.

use axum::Json;
use serde_json::{Map, Value, json};

use crate::config::schema;

/// What the names of the configuration's definitions begin with, since some of them are also names of answers.
const PREFIX: &str = "config.";

pub(super) async fn answer() -> Json<Value> {
    Json(document())
}

/// The whole description.
fn document() -> Value {
    let mut document: Value = serde_json::from_str(include_str!("openapi.json")).expect("a test reads it");
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        add_definition(&schema::schema()["$defs"], "service", schemas);
    }
    document
}

/// Adds a definition of the configuration, and those that it refers to.
fn add_definition(definitions: &Value, name: &str, schemas: &mut Map<String, Value>) {
    let named = format!("{PREFIX}{name}");
    if schemas.contains_key(&named) {
        return;
    }
    let mut definition = definitions[name].clone();
    let mut others = Vec::new();
    refer(&mut definition, &mut others);
    schemas.insert(named, definition);
    for other in others {
        add_definition(definitions, &other, schemas);
    }
}

/// Makes the references of a definition those of the description, and says to what they lead.
fn refer(schema: &mut Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str().and_then(|target| target.strip_prefix("#/$defs/")) {
                    Some(name) if key == "$ref" => {
                        found.push(name.to_owned());
                        *value = json!(format!("#/components/schemas/{PREFIX}{name}"));
                    }
                    _ => refer(value, found),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| refer(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
