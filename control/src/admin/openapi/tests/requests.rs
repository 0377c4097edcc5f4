//! Requests that are made from the description.

use serde_json::{Value, json};

use super::description::{Operation, Request, resolved, sample};
use crate::admin::changes::MAX_BODY;

/// The smallest request; what is given stands in place of what it would have.
pub fn request(operation: &Operation, path: &[(&str, &str)], query: &[(&str, &str)]) -> Request {
    let text = |schema: &Value| match sample(schema) {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let mut target = operation.path.clone();
    for parameter in operation.parameters("path") {
        let name = parameter["name"].as_str().unwrap();
        let given = path.iter().find(|one| one.0 == name).map(|one| one.1.to_owned());
        target = target.replace(&format!("{{{name}}}"), &given.unwrap_or_else(|| text(&parameter["schema"])));
    }
    let mut pairs: Vec<(String, String)> =
        query.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    for parameter in operation.parameters("query") {
        let name = parameter["name"].as_str().unwrap();
        if parameter["required"] == true && !query.iter().any(|one| one.0 == name) {
            pairs.push((name.to_owned(), text(&parameter["schema"])));
        }
    }
    if !pairs.is_empty() {
        target = format!("{target}?{}", serde_urlencoded::to_string(pairs).unwrap());
    }
    let body = operation.body().map(|schema| sample(schema).to_string().into_bytes()).unwrap_or_default();
    Request { method: operation.method.clone(), target, body }
}

/// The smallest request, and it with each thing that can be there or be wrong.
pub fn requests(operation: &Operation) -> Vec<Request> {
    let mut requests = vec![request(operation, &[], &[])];
    for parameter in operation.parameters("path") {
        let name = parameter["name"].as_str().unwrap();
        requests.push(request(operation, &[(name, "x")], &[]));
    }
    for parameter in operation.parameters("query") {
        let (name, schema) = (parameter["name"].as_str().unwrap(), resolved(&parameter["schema"]));
        let good = sample(&schema);
        requests.push(request(operation, &[], &[(name, good.as_str().unwrap_or(&good.to_string()))]));
        requests.push(request(operation, &[], &[("nonsense", "1")]));
        if schema["type"] != "string" || !schema["pattern"].is_null() {
            for bad in ["!", "-1", "1.5", ""] {
                requests.push(request(operation, &[], &[(name, bad)]));
            }
        }
        if let Some(maximum) = schema["maximum"].as_u64() {
            for value in [maximum, maximum + 1] {
                requests.push(request(operation, &[], &[(name, &value.to_string())]));
            }
        }
    }
    let with = |body: Vec<u8>| Request { body, ..request(operation, &[], &[]) };
    match operation.body() {
        // What is sent along with a GET is nobody's business.
        None if operation.method == "GET" => {}
        None => requests.push(with(b"{}".to_vec())),
        Some(schema) => {
            requests.push(with(Vec::new()));
            requests.push(with(b"x".to_vec()));
            requests.push(with(vec![b' '; MAX_BODY + 1]));
            let keys = resolved(schema)["properties"].as_object().unwrap().clone();
            for key in keys.keys().map(String::as_str).chain(["nonsense"]) {
                for value in [json!(true), json!({}), json!([]), json!(-1), json!(1.5), json!("!")] {
                    // What a text means is for the director, unless the description has a pattern.
                    let text = keys.get(key).map(resolved).is_some_and(|schema| {
                        value.is_string() && schema["type"] != "integer" && schema["pattern"].is_null()
                    });
                    let mut body = sample(schema);
                    body[key] = value;
                    if !text {
                        requests.push(with(body.to_string().into_bytes()));
                    }
                }
            }
        }
    }
    requests
}
