//! The schema against the reader. Documents are made from the schema itself: for every table the smallest
//! file that has it, and then that file with each key at each value of which the schema says something.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dataplane::service::{Protocol, State};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use super::patterns::patterns;
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
#[derive(Clone)]
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
        if let Some(service) = document.pointer_mut("/service/0").and_then(Value::as_object_mut)
            && let Some(mark) = service.get("mark").cloned()
        {
            ["address", "protocol", "ports"].iter().for_each(|key| drop(service.remove(*key)));
            document["mark"] = json!([{ "mark": mark, "address": "192.0.2.40" }]);
        }
        if let (Some(name), Some(vlans)) =
            (document.pointer("/port/0/name").cloned(), document["vlan"].as_array_mut())
        {
            for vlan in vlans.iter_mut().filter(|vlan| vlan["port"].is_string()) {
                vlan["port"] = name.clone();
            }
            if document.pointer("/vlan/0/mtu").is_some() {
                document["port"][0]["mtu"] = json!(9000);
            }
        }
        if let Some(ports) = document["port"].as_array_mut() {
            for port in ports.iter_mut().filter_map(Value::as_object_mut) {
                if !port.contains_key("bond") {
                    port.entry("device").or_insert(json!("net_null"));
                }
            }
        }
        if document.pointer("/port/0/bond/primary").is_some() {
            document["port"][0]["bond"]["mode"] = json!("active-backup");
        }
        if ["timeouts/udp", "one_packet", "quic_lb", "server/0/quic_id"]
            .iter()
            .any(|key| document.pointer(&format!("/service/0/{key}")).is_some())
        {
            document["service"][0]["protocol"] = json!("udp");
        }
        if document.pointer("/service/0/helper").is_some() {
            let service = &mut document["service"][0];
            (service["address"], service["persistence"]) = (json!("192.0.2.10:0"), json!({}));
            (service["protocol"], service["mode"]) = (json!("tcp"), json!("nat"));
            if service["helper"] == "ipsec" {
                service["protocol"] = json!("udp");
            }
        }
        if document.pointer("/service/0/track") == Some(&json!("at-risk")) {
            document["service"][0]["mode"] = json!("dr");
        }
        let is_sctps = |key: &str| {
            State::of_protocol(Protocol::Sctp).any(|state| state.timeout_key() == key)
                && State::of_protocol(Protocol::Tcp).all(|state| state.timeout_key() != key)
        };
        if let Some(timeouts) = document["service"][0]["timeouts"].as_object()
            && timeouts.keys().any(|key| is_sctps(key))
        {
            document["service"][0]["protocol"] = json!("sctp");
        }
        if let Some(lower) = document.pointer("/service/0/server/0/lower_threshold").cloned() {
            document["service"][0]["server"][0]["upper_threshold"] = lower;
        }
        if document.pointer("/service/0/server/0/quic_id").is_some() {
            document["service"][0]["quic_lb"] = json!([{ "nonce_length": 4 }]);
        } else if document.pointer("/service/0/quic_lb").is_some() {
            document["service"][0]["server"] = json!([{ "address": "10.0.0.11", "quic_id": "01" }]);
        }
        if document.pointer("/service/0/hysteresis").is_some() {
            document["service"][0]["quorum"] = json!(1_000_000_000);
        }
        if let Some(tunnel) = document.pointer("/service/0/tunnel") {
            // Of all kinds the one that has every key.
            let is_gue = !tunnel["port"].is_null() || tunnel["checksum"] == true;
            document["service"][0]["mode"] = json!("tunnel");
            if is_gue {
                document["service"][0]["tunnel"]["encapsulation"] = json!("gue");
            }
        }
        if document.pointer("/service/0/fullnat").is_some() {
            document["service"][0]["mode"] = json!("fullnat");
        } else if document.pointer("/service/0/mode") == Some(&json!("fullnat")) {
            document["service"][0]["fullnat"] = json!({ "local": ["10.0.0.100"] });
        }
        let is_ipv6 = |key: &str| {
            let address = document.pointer(key).and_then(Value::as_str);
            address.is_some_and(|address| address.matches(':').count() > 1)
        };
        let is_long = ["persistence/prefix", "limit/source_prefix"]
            .iter()
            .any(|key| document.pointer(&format!("/service/0/{key}")).and_then(Value::as_i64) > Some(32));
        if is_long || is_ipv6("/service/0/server/0/address") || is_ipv6("/service/0/sorry_server") {
            document["service"][0]["address"] = json!("[2001:db8::10]:80");
        }
        let sorry = document.pointer("/service/0/sorry_server").and_then(Value::as_str).unwrap_or_default();
        if let Some((_, port)) = sorry.rsplit_once(':')
            && port.parse() == Ok(0)
        {
            let address = document["service"][0]["address"].as_str().unwrap().replace(":80", ":0");
            document["service"][0]["address"] = json!(address);
        }
        if document.pointer("/service/0/ports").is_some() {
            document["service"][0]["address"] = json!("192.0.2.10:0");
        }
        let flag = document.pointer("/service/0/flags/0").and_then(Value::as_str).unwrap_or_default();
        if let Some((scheduler, _)) = flag.split_once('-') {
            document["service"][0]["scheduler"] = json!(scheduler);
        }
        for (key, name) in [
            ("/admin/tcp/certificate", "admin.crt"),
            ("/admin/tcp/key", "admin.key"),
            ("/admin/tcp/token_file", "admin.token"),
            ("/sync/key_file", "sync.key"),
            ("/sources/allow_file", "sources.list"),
            ("/sources/deny_file", "sources.list"),
            ("/service/0/sources/allow_file", "sources.list"),
            ("/service/0/sources/deny_file", "sources.list"),
            ("/scheduling/key_file", "scheduling.key"),
            ("/service/0/quic_lb/0/key_file", "quic.key"),
        ] {
            if let Some(path) = document.pointer_mut(key).filter(|path| **path == "") {
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
    let is_either = property["type"] == json!(["boolean", "integer"]);
    if !property["enum"].is_null() || !property["pattern"].is_null() {
        bad.push(json!("! no such"));
    }
    if property["type"] == "integer" || property["type"] == json!(["string", "integer"]) || is_either {
        for (name, step) in [("minimum", -1), ("maximum", 1)] {
            if let Some(limit) = property[name].as_i64() {
                good.push(json!(limit));
                bad.push(json!(limit + step));
            }
        }
    }
    if property["type"] == "array" {
        let (items, not_items) = good_and_bad(&property["items"]);
        let is_enough = property["minItems"].as_u64().is_none_or(|least| least <= 1);
        let alone = if is_enough { &mut good } else { &mut bad };
        alone.extend(items.into_iter().map(|item| json!([item])));
        bad.extend(not_items.into_iter().map(|item| json!([item])));
    }
    let strange = if property["type"] == "boolean" || is_either { json!("yes") } else { json!(true) };
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

/// What can be typed where the schema expects one of these: mostly nearly right.
fn typed(definition: &str) -> BoxedStrategy<Value> {
    let pieces = |words: &'static [&'static str], most| {
        vec(select(words), 1..=most).prop_map(|words| json!(words.concat())).boxed()
    };
    let mostly = |good: &'static [&'static str], odd: &'static [&'static str]| prop_oneof![6 => select(good), 1 => select(odd)];
    // None that the smallest files have already.
    let first = mostly(
        &["1", "99", "126", "128", "172", "200", "223", "240", "255"],
        &["0", "127", "224", "239", "256", "01", "x", ""],
    );
    let next = mostly(&["0", "9", "10", "99", "100", "199", "200", "249", "255"], &["256", "00", "-1", ""]);
    let count = prop_oneof![8 => Just(3), 1 => Just(2), 1 => Just(4)];
    let host = (first, count.prop_flat_map(move |count| vec(next.clone(), count)))
        .prop_map(|(first, next)| format!("{first}.{}", next.join(".")));
    let host = prop_oneof![9 => host, 1 => Just("255.255.255.255".to_owned())];
    let group = mostly(&["1", "0a", "DB8", "2001", "ffff", "ff00", "fe80", "0"], &["10000", "g", "", "1.2"]);
    let groups = vec(group, 0..=8).prop_map(|groups| groups.join(":")).boxed();
    let tail = prop_oneof![4 => groups.clone(), 1 => Just("192.0.2.1".to_owned()), 1 => Just("1:198.51.100.255".to_owned())];
    let ipv6 = prop_oneof![
        6 => (groups.clone(), tail.clone()).prop_map(|(head, tail)| format!("{head}::{tail}")),
        2 => groups,
        2 => (vec(Just("2"), 6), tail).prop_map(|(head, tail)| format!("{}:{tail}", head.join(":"))),
        1 => select(&["::", "::1", "0:0::01", "::ffff:10.0.0.1", "fe80::1", "ff02::1", "ff:2::1", "::0.0.0.1", "1::2::3"][..])
            .prop_map(str::to_owned),
    ];
    let ipv6 = prop_oneof![3 => ipv6.clone().prop_map(|address| format!("[{address}]")), 1 => ipv6];
    let host = prop_oneof![host, ipv6];
    let port = mostly(
        &["", "", "", ":1", ":80", ":00080", ":9999", ":10000", ":65535"],
        &[":", ":0", ":+80", ":65536", ":70000", ":80:80", "/24"],
    );
    let length = mostly(
        &["/1", "/08", "/19", "/31", "/32", "/64", "/128"],
        &["/0", "/33", "/129", "/+24", "/x", "/", ""],
    );
    match definition {
        "time" => prop_oneof![
            pieces(
                &["0", "1", "90", "5", "s", "ms", "m", "min", "h", "d", "weeks", "M", "µs", " ", "  ", "\t"],
                6
            ),
            pieces(
                &[
                    "1s", "2 m", "30sec ", "1.5h", ".5s", "0.25min", "7", "!", "-1s", "1e3s", "S", "1,5s",
                    "\u{660}s"
                ],
                3
            ),
            any::<i32>().prop_map(|seconds| json!(seconds)),
            (-1_i64..4).prop_map(|seconds| json!(seconds)),
        ]
        .boxed(),
        "prefix" => (host, length).prop_map(|(host, length)| json!(host + length)).boxed(),
        "address" | "socket" | "endpoint" | "server_address" => {
            (host, port).prop_map(|(host, port)| json!(host + port)).boxed()
        }
        "integer" => prop_oneof![
            any::<i64>().prop_map(|number| json!(number)),
            (0_u32..63, -1_i64..=1).prop_map(|(bit, more)| json!((1_i64 << bit) + more)),
            select(&[0_i64, 10, 100, 1000, 65_535, 8191, 9000, 599, 500_000_000][..])
                .prop_map(|number| json!(number)),
        ]
        .boxed(),
        other => panic!("nobody knows what is typed for {other}"),
    }
}

/// A key whose value, or whose elements if it is an array, have a pattern or a range; and which.
struct Bounded {
    table: Table,
    key: String,
    array: bool,
    definition: String,
}

fn bounded() -> Vec<Bounded> {
    let definition = |property: &Value| {
        let reference = property["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/"));
        let known = reference.filter(|name| patterns().iter().any(|(known, _)| known == name));
        known.or((property["type"] == "integer").then_some("integer")).map(str::to_owned)
    };
    let mut found = Vec::new();
    for table in tables() {
        for (key, property) in table.keys() {
            for (array, property) in [(false, property), (true, &property["items"])] {
                if let Some(definition) = definition(property) {
                    found.push(Bounded { table: table.clone(), key: key.clone(), array, definition });
                }
            }
        }
    }
    found
}

/// What no pattern can say: a sum of times, what a prefix makes of an address, what is IPv4 in other words, and which core has
/// a worker already.
fn is_beyond_a_schema(definition: &str, value: &Value, errors: &ConfigErrors) -> bool {
    let errors = errors.to_string();
    match definition {
        "time" => value.is_string() && (errors.contains("out of range") || errors.contains("whole number")),
        "prefix" => {
            ["of the network itself", "broadcast address of its", "is an IPv4 address, to be written"]
                .iter()
                .any(|words| errors.contains(words))
        }
        "address" | "socket" | "endpoint" | "server_address" => {
            errors.contains("is an IPv4 address, to be written")
        }
        "integer" => errors.contains("is always busy with a worker"),
        _ => false,
    }
}

#[test]
fn reader_and_schema_agree_on_whatever_is_typed() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let bounded = bounded();
    for definition in ["time", "prefix", "address", "socket", "endpoint", "server_address", "integer"] {
        let of_it: Vec<_> = bounded.iter().filter(|bounded| bounded.definition == definition).collect();
        let (taken, refused) = (Cell::new(0), Cell::new(0));
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 400,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let values = (any::<Index>(), typed(definition));
        let result = runner.run(&values, |(index, value)| {
            let Bounded { table, key, array, .. } = index.get(&of_it);
            let typed = if *array { json!([value]) } else { value.clone() };
            let document = table.with(key, typed);
            let place = format!("{}: {key} = {value}", table.shown());
            match (validator.is_valid(&document), read(&document).0) {
                (true, Ok(_)) => taken.set(taken.get() + 1),
                (false, Err(_)) => refused.set(refused.get() + 1),
                (true, Err(errors)) if is_beyond_a_schema(definition, &value, &errors) => {}
                (true, Err(errors)) => {
                    panic!("the schema takes {place}, the reader does not: {errors}; {REMEDY}")
                }
                (false, Ok(_)) => panic!("the reader takes {place}, the schema does not; {REMEDY}"),
            }
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{error}"));
        assert!(taken.get() > 10 && refused.get() > 10, "{definition}: {taken:?} taken, {refused:?} refused");
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
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let directories = [configs.clone(), configs.join("ipv6")];
    let entries = directories.iter().flat_map(|directory| std::fs::read_dir(directory).unwrap());
    for path in entries.map(|entry| entry.unwrap().path()) {
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
