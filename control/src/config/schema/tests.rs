//! The schema against the reader. Documents are made from the schema itself: for every table the smallest
//! file that has it, and then that file with each key at each value of which the schema says something.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::schema;
use crate::config::check::{self, Parts};
use crate::config::error::{ConfigErrors, Report, Source};
use crate::config::raw::Document;
use crate::config::tcp::fixture::Files;

thread_local! {
    /// What an `[admin.tcp]` names; gone with the test's thread.
    static FILES: Files = Files::new();
}

const REMEDY: &str = "see control/src/config/schema/schema.json";

/// A table that a configuration can have: where it is, and what its schema says with all references followed.
struct Table {
    /// The way from the root.
    path: Vec<Step>,
    schema: Value,
}

/// A table on the way to another one.
#[derive(Clone)]
struct Step {
    key: String,
    /// Whether it is an array of tables.
    array: bool,
    /// What the schema says of it, in the form that has what is below.
    form: Value,
}

impl Table {
    fn keys(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.schema["properties"].as_object().into_iter().flatten()
    }

    fn dotted(&self) -> String {
        self.path.iter().map(|step| step.key.as_str()).collect::<Vec<_>>().join(".")
    }

    fn shown(&self) -> String {
        let kind = self.path.iter().find_map(|step| step.form["properties"]["kind"]["const"].as_str());
        self.dotted() + &kind.map(|kind| format!(" ({kind})")).unwrap_or_default()
    }

    /// The smallest file with this table, in which the table is `contents`.
    fn document(&self, contents: Value) -> Value {
        let root = schema();
        let mut document = sample(&root, &root);
        let mut place = &mut document;
        for (index, Step { key, array, form }) in self.path.iter().enumerate() {
            let last = index + 1 == self.path.len();
            let value = if last { contents.clone() } else { sample(&root, form) };
            place[key] = if *array { json!([value]) } else { value };
            place = if *array { &mut place[key][0] } else { &mut place[key] };
        }
        if self.path.is_empty() {
            document = contents;
        }
        // What a value elsewhere decides.
        if document.pointer("/service/0/timeouts/udp").is_some() {
            document["service"][0]["protocol"] = json!("udp");
        }
        if document.pointer("/service/0/hysteresis").is_some() {
            document["service"][0]["quorum"] = json!(1_000_000_000);
        }
        let flag = document.pointer("/service/0/flags/0").and_then(Value::as_str).unwrap_or_default();
        if let Some((scheduler, _)) = flag.split_once('-') {
            document["service"][0]["scheduler"] = json!(scheduler);
        }
        for (key, name) in [("certificate", "admin.crt"), ("key", "admin.key"), ("token_file", "admin.token")]
        {
            if let Some(path) = document.pointer_mut(&format!("/admin/tcp/{key}")).filter(|path| **path == "")
            {
                *path = json!(FILES.with(|files| files.path(name)));
            }
        }
        without_null(document)
    }

    /// The table with what it must have, and this key.
    fn with(&self, key: &str, value: Value) -> Value {
        let root = schema();
        let mut contents = sample(&root, &self.schema);
        contents[key] = value;
        for other in self.schema["dependentRequired"][key].as_array().into_iter().flatten() {
            let other = other.as_str().unwrap();
            if contents[other].is_null() {
                contents[other] = sample(&root, &resolved(&root, &self.schema["properties"][other]));
            }
        }
        self.document(contents)
    }
}

/// Indexing into JSON for a look leaves nulls behind.
fn without_null(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().map(|(key, value)| (key, without_null(value)));
            Value::Object(kept.filter(|(_, value)| !value.is_null()).collect())
        }
        Value::Array(values) => values.into_iter().map(without_null).collect(),
        other => other,
    }
}

/// A schema with what it refers to.
fn resolved(root: &Value, schema: &Value) -> Value {
    let Some(reference) = schema["$ref"].as_str() else { return schema.clone() };
    let mut target = resolved(root, root.pointer(reference.trim_start_matches('#')).expect(reference));
    for (key, value) in schema.as_object().unwrap().iter().filter(|(key, _)| *key != "$ref") {
        target[key] = value.clone();
    }
    target
}

/// The alternatives of a schema.
fn alternatives(root: &Value, schema: &Value) -> Vec<Value> {
    let schema = resolved(root, schema);
    let several = schema["anyOf"].as_array().or(schema["oneOf"].as_array());
    match several {
        Some(several) => several.iter().flat_map(|one| alternatives(root, one)).collect(),
        None => vec![schema],
    }
}

/// The smallest value that fits.
fn sample(root: &Value, schema: &Value) -> Value {
    let schema = alternatives(root, schema).swap_remove(0);
    for ready in [&schema["const"], &schema["examples"][0], &schema["default"], &schema["enum"][0]] {
        if !ready.is_null() {
            return ready.clone();
        }
    }
    if schema["type"] == "array" {
        return json!([sample(root, &schema["items"])]);
    }
    // What no example can be given for, such as the path of a file that must be there.
    if schema["type"] == "string" {
        return json!("");
    }
    assert_eq!(schema["type"], "object", "an example or a default is missing in {schema}; {REMEDY}");
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let each = required.iter().map(|key| {
        let key = key.as_str().unwrap();
        (key.to_owned(), sample(root, &schema["properties"][key]))
    });
    Value::Object(each.collect())
}

/// All tables, the root first; a table that has several forms is there in each.
fn tables() -> Vec<Table> {
    fn walk(root: &Value, table: Table, found: &mut Vec<Table>) {
        for (key, property) in table.schema["properties"].as_object().into_iter().flatten() {
            let below = |array, schema: Value| {
                let mut path = table.path.clone();
                path.push(Step { key: key.clone(), array, form: schema.clone() });
                Table { path, schema }
            };
            for form in alternatives(root, property) {
                if form["type"] == "object" {
                    walk(root, below(false, form), found);
                } else if form["type"] == "array" {
                    let items = alternatives(root, &form["items"]).into_iter();
                    items
                        .filter(|item| item["type"] == "object")
                        .for_each(|item| walk(root, below(true, item), found));
                }
            }
        }
        found.push(table);
    }
    let root = schema();
    let mut found = Vec::new();
    walk(&root, Table { path: Vec::new(), schema: root.clone() }, &mut found);
    found
}

type Known = BTreeMap<String, BTreeSet<String>>;

/// What the reader makes of a document, and the keys that it knows in each table of it.
fn read(document: &Value) -> (Result<Parts, ConfigErrors>, Known) {
    let text = toml::to_string(&toml::Value::try_from(document).unwrap()).unwrap();
    let source = Source::new(Path::new("f"), text);
    let parsed = Document::parse(&source).unwrap();
    let report = Report::new(source.clone());
    let parts = check::parts(&parsed.root(&report));
    let known = report.known.take();
    (report.finish().map(|()| parts.unwrap()), known)
}

#[test]
fn it_is_a_schema() {
    assert!(jsonschema::meta::is_valid(&schema()));
    jsonschema::draft202012::new(&schema()).unwrap();
}

#[test]
fn every_key_that_the_reader_knows_and_no_other() {
    let (mut of_reader, mut of_schema) = (BTreeSet::new(), BTreeSet::new());
    for table in tables() {
        let path = table.dotted();
        for (key, property) in table.keys() {
            of_schema.insert((table.shown(), key.clone()));
            // A document with this key, because one key may decide which others are known.
            let value = sample(&schema(), property);
            let (_, known) = read(&table.with(key, value));
            let keys = known.get(&path).into_iter().flatten();
            of_reader.extend(keys.map(|key| (table.shown(), key.clone())));
        }
    }
    let lacks: Vec<_> = of_reader.difference(&of_schema).collect();
    assert!(lacks.is_empty(), "the schema lacks (table, key) {lacks:?}; {REMEDY}");
    let invents: Vec<_> = of_schema.difference(&of_reader).collect();
    assert!(invents.is_empty(), "the reader does not know (table, key) {invents:?}; {REMEDY}");
}

#[test]
fn every_key_is_explained() {
    for table in tables() {
        assert!(table.schema["description"].is_string(), "{} is not described; {REMEDY}", table.shown());
        for (key, property) in table.keys() {
            let described = resolved(&schema(), property)["description"].is_string();
            assert!(described, "{}: {key} is not described; {REMEDY}", table.shown());
        }
    }
}

/// Values that the schema names as good, and values that it says are not.
fn good_and_bad(property: &Value) -> (Vec<Value>, Vec<Value>) {
    let list = |name: &str| property[name].as_array().cloned().unwrap_or_default();
    let single = |name: &str| (!property[name].is_null()).then(|| property[name].clone());
    let mut good: Vec<Value> = list("enum").into_iter().chain(list("examples")).collect();
    good.extend(single("default").into_iter().chain(single("const")));
    let mut bad = Vec::new();
    if !property["enum"].is_null() || !property["pattern"].is_null() {
        bad.push(json!("! no such"));
    }
    if property["type"] == "integer" {
        for (name, step) in [("minimum", -1), ("maximum", 1)] {
            if let Some(limit) = property[name].as_i64() {
                good.push(json!(limit));
                bad.push(json!(limit + step));
            }
        }
    }
    if property["type"] == "array" {
        let (items, not_items) = good_and_bad(&property["items"]);
        good.extend(items.into_iter().map(|item| json!([item])));
        bad.extend(not_items.into_iter().map(|item| json!([item])));
    }
    let strange = if property["type"] == "boolean" { json!("yes") } else { json!(true) };
    bad.push(strange);
    (good, bad)
}

#[test]
fn reader_and_schema_agree_on_values() {
    let root = schema();
    let validator = jsonschema::draft202012::new(&root).unwrap();
    for table in tables() {
        for (key, property) in table.keys() {
            let property = resolved(&root, property);
            let (good, bad) = good_and_bad(&property);
            for value in good {
                let document = table.with(key, value.clone());
                let place = format!("{}: {key} = {value}", table.shown());
                assert!(validator.is_valid(&document), "the schema refuses its own {place}; {REMEDY}");
                let read = read(&document).0;
                assert!(read.is_ok(), "the reader refuses {place}: {}; {REMEDY}", read.unwrap_err());
            }
            for value in bad {
                let document = table.with(key, value.clone());
                let place = format!("{}: {key} = {value}", table.shown());
                assert!(!validator.is_valid(&document), "the schema takes {place}; {REMEDY}");
                assert!(
                    read(&document).0.is_err(),
                    "the reader takes {place}, the schema does not; {REMEDY}"
                );
            }
        }
    }
}

#[test]
fn what_the_schema_calls_the_default_is_it() {
    for table in tables() {
        for (key, property) in table.keys() {
            let default = resolved(&schema(), property)["default"].clone();
            if default.is_null() {
                continue;
            }
            let with = table.with(key, default.clone());
            let mut without = table.with(key, Value::Null);
            // `timeouts.udp` also took the protocol along, and `hysteresis` the quorum.
            for key in ["protocol", "quorum"].into_iter().filter(|other| other != key) {
                if let Some(decisive) = with["service"][0].get(key) {
                    without["service"][0][key] = decisive.clone();
                }
            }
            let place = format!("{}: {key} = {default}", table.shown());
            match (read(&with).0, read(&without).0) {
                (Ok(with), Ok(without)) => assert!(with == without, "not the default: {place}; {REMEDY}"),
                (with, without) => panic!("{place}: {:?}, {:?}", with.err(), without.err()),
            }
        }
    }
}

#[test]
fn every_example_validates() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            let document = serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap();
            if let Err(error) = validator.validate(&document) {
                panic!("{}: {}: {error}; {REMEDY}", path.display(), error.instance_path());
            }
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen} examples");
}
