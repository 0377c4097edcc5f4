//! The description as a test asks it: what it has of an operation, and whether a request or an answer fits.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::super::document;

/// The methods that a path of the description can have, as they stand there.
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// An operation, its references followed.
pub struct Operation {
    /// `GET`.
    pub method: String,
    /// As in the description, e.g. `/v1/services/{protocol}/{service}`.
    pub path: String,
    /// Its parameters, also those of its path.
    pub parameters: Vec<Value>,
    /// All that it says.
    pub value: Value,
}

pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub body: Vec<u8>,
}

/// What a reference leads to, or the value itself.
pub fn resolved(value: &Value) -> Value {
    match value["$ref"].as_str() {
        None => value.clone(),
        Some(to) => document().pointer(to.trim_start_matches('#')).expect(to).clone(),
    }
}

pub fn operations() -> Vec<Operation> {
    let document = document();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in METHODS {
            let value = &item[method];
            if value.is_null() {
                continue;
            }
            let lists = [&item["parameters"], &value["parameters"]];
            let parameters =
                lists.iter().filter_map(|list| list.as_array()).flatten().map(resolved).collect();
            let (method, path) = (method.to_uppercase(), path.clone());
            operations.push(Operation { method, path, parameters, value: value.clone() });
        }
    }
    operations
}

/// The operation that a request is for.
pub fn operation(request: &Request) -> Option<Operation> {
    let path = request.target.split('?').next().unwrap();
    operations().into_iter().find(|one| one.method == request.method && one.values(path).is_some())
}

impl Operation {
    pub fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub fn parameters(&self, place: &str) -> impl Iterator<Item = &Value> {
        self.parameters.iter().filter(move |parameter| parameter["in"] == place)
    }

    /// The schema of the body of a request.
    pub fn body(&self) -> Option<&Value> {
        self.value.pointer("/requestBody/content/application~1json/schema")
    }

    pub fn statuses(&self) -> BTreeSet<u16> {
        self.value["responses"].as_object().unwrap().keys().map(|status| status.parse().unwrap()).collect()
    }

    /// What an answer with this status can be: media types and what is said of each.
    pub fn content(&self, status: u16) -> Map<String, Value> {
        let response = resolved(&self.value["responses"][status.to_string()]);
        response["content"].as_object().cloned().unwrap_or_default()
    }

    /// What stands in a path for each name in braces.
    fn values<'a>(&self, path: &'a str) -> Option<Vec<(String, &'a str)>> {
        let (template, path): (Vec<_>, Vec<_>) = (self.path.split('/').collect(), path.split('/').collect());
        let mut values = Vec::new();
        for (template, segment) in template.iter().zip(&path) {
            match template.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) => values.push((name.to_owned(), *segment)),
                None if template == segment => {}
                None => return None,
            }
        }
        (template.len() == path.len()).then_some(values)
    }

    /// Why a request is not as described.
    pub fn misfit(&self, request: &Request) -> Option<String> {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let in_path = self.values(path)?.into_iter().map(|(name, value)| ("path", name, value.to_owned()));
        let query: Vec<(String, String)> = serde_urlencoded::from_str(query).unwrap();
        let in_query = query.into_iter().map(|(name, value)| ("query", name, value));
        let given: Vec<(&str, String, String)> = in_path.chain(in_query).collect();
        for (place, name, value) in &given {
            let Some(parameter) = self.parameters(place).find(|parameter| parameter["name"] == **name) else {
                return Some(format!("{name} is no parameter"));
            };
            let text = json!(value);
            let kind = &parameter["schema"]["type"];
            let typed = if kind == "integer" || kind == "boolean" {
                serde_json::from_str(value).unwrap_or(text)
            } else {
                text
            };
            if let Some(error) = misfit(&parameter["schema"], &typed, false) {
                return Some(format!("{name}: {error}"));
            }
        }
        let missing = self.parameters.iter().find(|parameter| {
            parameter["required"] == true && !given.iter().any(|(_, name, _)| parameter["name"] == **name)
        });
        if let Some(missing) = missing {
            return Some(format!("{} is missing", missing["name"]));
        }
        match self.body() {
            None => (!request.body.is_empty()).then(|| "a body".to_owned()),
            Some(schema) => match serde_json::from_slice(&request.body) {
                Err(error) => Some(error.to_string()),
                Ok(body) => misfit(schema, &body, false),
            },
        }
    }
}

/// Why a value is not as its schema has it. Strictly, every key must be described: what a client may overlook, a test
/// must not.
pub fn misfit(schema: &Value, value: &Value, strict: bool) -> Option<String> {
    let mut root = json!({ "allOf": [schema], "components": document()["components"] });
    if strict {
        close(&mut root);
    }
    let validator = jsonschema::draft202012::new(&root).unwrap();
    validator.validate(value).err().map(|error| format!("{}: {error}", error.instance_path()))
}

fn close(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(close);
            let open = map.get("additionalProperties").is_none_or(|more| *more == true);
            if open && map.get("type").is_some_and(|kind| kind == "object") && map.contains_key("properties")
            {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}

/// The smallest value that fits.
pub fn sample(schema: &Value) -> Value {
    let schema = resolved(schema);
    for ready in [&schema["const"], &schema["examples"][0], &schema["default"], &schema["enum"][0]] {
        if !ready.is_null() {
            return ready.clone();
        }
    }
    match schema["type"].as_str() {
        Some("integer") => json!(1),
        Some("string") => json!("x"),
        Some("object") => {
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let pairs = required.iter().filter_map(Value::as_str);
            Value::Object(pairs.map(|key| (key.to_owned(), sample(&schema["properties"][key]))).collect())
        }
        _ => panic!("an example is missing in {schema}"),
    }
}
