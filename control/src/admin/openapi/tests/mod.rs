//! The description against the server: requests are made from the description itself, for every operation the smallest one
//! and then that one with each parameter and each key of its body, good and bad. Whatever the server answers must be
//! described, and whatever is described must have been answered.

mod description;
mod example;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::to_bytes;
use axum::extract::Request as HttpRequest;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::document;
use crate::admin::client::{Client, Place};
use crate::admin::tcp::Settings;
use crate::admin::token::guard;
use crate::admin::{api, bind, capture, explain, router, routes, upgrade};
use crate::config::tcp::fixture::{Files, READ_TOKEN, TOKEN};
use description::{Operation, Request, misfit, operation, operations, resolved};
use example::{Answers, Example, kinds};
use requests::{request, requests};

const REMEDY: &str = "see control/src/admin/openapi/openapi.json";

/// A socket with this server behind it, in a directory that goes with the first value.
async fn serve(app: axum::Router) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rvs.sock");
    let socket = bind(&path, None).await.unwrap();
    tokio::spawn(async move {
        let (listener, _file) = (socket.listener, socket.file);
        axum::serve(listener, app).await
    });
    (directory, path)
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn media_type(&self) -> &str {
        self.headers["content-type"].split(';').next().unwrap()
    }

    fn error(&self) -> String {
        serde_json::from_slice::<api::Failure>(&self.body).unwrap().error
    }
}

async fn ask(socket: &Path, request: &Request, accept: &str) -> Answer {
    ask_with(socket, request, &format!("accept: {accept}\r\n")).await
}

/// HTTP/1.0, because its answers are not chunked.
async fn ask_with(socket: &Path, request: &Request, headers: &str) -> Answer {
    let Request { method, target, body } = request;
    let length = body.len();
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let head = format!("{method} {target} HTTP/1.0\r\n{headers}content-length: {length}\r\n\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Answer { status, headers, body: answer[end + 4..].to_vec() }
}

/// What of an answer is not as described.
fn undescribed(operation: &Operation, answer: &Answer) -> Option<String> {
    if !operation.statuses().contains(&answer.status) {
        return Some(format!("status {}", answer.status));
    }
    let content = operation.content(answer.status);
    let Some(media) = content.get(answer.media_type()) else { return Some(answer.media_type().to_owned()) };
    // A capture has none: it is not text.
    let schema = media.get("schema")?;
    let misfit = |text: &[u8]| match serde_json::from_slice(text) {
        Ok(value) => misfit(schema, &value, true),
        Err(error) => Some(error.to_string()),
    };
    match answer.media_type() {
        "application/json" => misfit(&answer.body),
        "application/x-ndjson" => {
            assert!(answer.body.ends_with(b"\n"));
            answer.body.split_inclusive(|byte| *byte == b'\n').find_map(misfit)
        }
        _ => misfit(json!(String::from_utf8_lossy(&answer.body)).to_string().as_bytes()),
    }
}

#[tokio::test]
async fn what_is_described_is_answered_and_nothing_else() {
    let (_full, full) = serve(router(Example::new(Answers::Full))).await;
    let (_sparse, sparse) = serve(router(Example::new(Answers::Sparse))).await;
    let (_gone, gone) = serve(router(Example::new(Answers::None))).await;
    // As over TCP, but for TCP.
    let files = Files::new();
    let settings = Settings::new(files.read(&files.table("127.0.0.1:9443")).unwrap().admin.tcp.unwrap());
    let guard = from_fn_with_state(settings.subscribe(), guard);
    let (_guarded, guarded) = serve(router(Example::new(Answers::Full)).layer(guard)).await;
    let mut disagree = Vec::new();
    for operation in operations() {
        let mut seen = BTreeSet::new();
        let mut check = |request: &Request, answer: &Answer| {
            if let Some(wrong) = undescribed(&operation, answer) {
                let (method, target, body) =
                    (&request.method, &request.target, String::from_utf8_lossy(&answer.body));
                panic!("{method} {target}: not described: {wrong}: {body}; {REMEDY}");
            }
            seen.insert((answer.status, answer.media_type().to_owned()));
        };
        for request in requests(&operation) {
            let answer = ask(&full, &request, "*/*").await;
            check(&request, &answer);
            let (Request { method, target, body }, misfit) = (&request, operation.misfit(&request));
            if misfit.is_none() != (answer.status == 200) {
                let (body, status) = (String::from_utf8_lossy(body), answer.status);
                disagree.push(format!("{method} {target} {body:.200}: {status}, description: {misfit:?}"));
            }
        }
        let smallest = request(&operation, &[], &[]);
        for accept in operation.content(200).keys() {
            for socket in [&full, &sparse, &gone] {
                check(&smallest, &ask(socket, &smallest, accept).await);
            }
        }
        let is_open = operation.method == "GET" && operation.path != "/v1/capture";
        for (token, status) in [("x", 401), (READ_TOKEN, if is_open { 200 } else { 403 }), (TOKEN, 200)] {
            let answer = ask_with(&guarded, &smallest, &format!("authorization: Bearer {token}\r\n")).await;
            assert_eq!(answer.status, status, "{}: {token}", operation.name());
            assert_eq!(answer.headers.contains_key("www-authenticate"), status != 200);
            check(&smallest, &answer);
        }
        let described = operation
            .statuses()
            .into_iter()
            .flat_map(|status| operation.content(status).into_iter().map(move |(media, _)| (status, media)));
        assert_eq!(seen, described.collect(), "{}: answered, described; {REMEDY}", operation.name());
    }
    assert!(disagree.is_empty(), "{}\n{REMEDY}", disagree.join("\n"));
}

/// Who sends a key that is not known is told which are.
#[tokio::test]
async fn the_server_knows_the_same_keys() {
    let (_directory, socket) = serve(router(Example::new(Answers::Full))).await;
    let compare = async |request: Request, mut described: Vec<String>| {
        let answer = ask(&socket, &request, "*/*").await;
        let error = answer.error();
        let (_, expected) = error.split_once("unknown field `nonsense`, expected ").expect(&error);
        let mut known: Vec<_> = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        known.sort();
        described.sort();
        assert_eq!(known, described, "{}: known, described; {REMEDY}", request.target);
        assert_eq!(answer.status, 400);
    };
    let mut compared = 0;
    for operation in operations() {
        let names = operation.parameters("query").map(|one| one["name"].as_str().unwrap().to_owned());
        let names: Vec<_> = names.collect();
        if !names.is_empty() {
            compare(request(&operation, &[], &[("nonsense", "1")]), names).await;
            compared += 1;
        }
        // A service's settings are the configuration's, which has its own tests.
        let Some(schema) = operation.body().filter(|_| operation.path != "/v1/services") else { continue };
        let keys = resolved(schema)["properties"].as_object().unwrap().keys().cloned().collect();
        let body = json!({ "nonsense": 1 }).to_string().into_bytes();
        compare(Request { body, ..request(&operation, &[], &[]) }, keys).await;
        compared += 1;
    }
    assert_eq!(compared, 11);
}

#[tokio::test]
async fn every_path_and_method() {
    let (_directory, socket) = serve(router(Example::new(Answers::Full))).await;
    let mut of_server = BTreeSet::new();
    for (path, _) in routes::<Example>() {
        // No path answers to this one, so each says to which it does.
        let method = "TRACE".to_owned();
        let request = Request { method, target: path.replace(['{', '}'], ""), body: Vec::new() };
        let answer = ask(&socket, &request, "*/*").await;
        assert_eq!(answer.status, 405, "{path}");
        assert_eq!(misfit(&json!({ "$ref": "#/components/schemas/Failure" }), &body(&answer), true), None);
        // Whoever answers to GET answers to HEAD.
        let methods = answer.headers["allow"].split(',').filter(|method| *method != "HEAD");
        of_server.extend(methods.map(|method| format!("{method} {path}")));
    }
    let described: BTreeSet<_> = operations().iter().map(Operation::name).collect();
    assert_eq!(of_server, described, "of the server, described; {REMEDY}");

    let request = Request { method: "GET".to_owned(), target: "/v1/nonsense".to_owned(), body: Vec::new() };
    let answer = ask(&socket, &request, "*/*").await;
    assert_eq!(answer.status, 404);
    assert_eq!(misfit(&json!({ "$ref": "#/components/schemas/Failure" }), &body(&answer), true), None);
}

fn body(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn what_our_client_asks_is_described() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let record = {
        let asked = asked.clone();
        move |request: HttpRequest, next: Next| {
            let asked = asked.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = to_bytes(body, usize::MAX).await.unwrap();
                let (method, target) = (head.method.to_string(), head.uri.to_string());
                asked.lock().unwrap().push(Request { method, target, body: body.to_vec() });
                next.run(HttpRequest::from_parts(head, body.into())).await
            }
        }
    };
    let (_directory, socket) = serve(router(Example::new(Answers::Full)).layer(from_fn(record))).await;
    let client = Client::new(&socket);
    let (service, server) = ("udp/192.0.2.10:53".parse().unwrap(), "10.0.0.11:8080".parse().unwrap());
    client.services().await.unwrap();
    client.counters().await.unwrap();
    client.snat().await.unwrap();
    client.reload(false).await.unwrap();
    client.reload(true).await.unwrap();
    client.diff().await.unwrap();
    client.sync().await.unwrap();
    for question in [
        upgrade::Question::default(),
        upgrade::Question { binary: Some("/usr/local/sbin/rvs".into()), lose_connections: true },
    ] {
        client.upgrade(&question).await.unwrap();
    }
    client.upgraded().await.unwrap();
    client.save().await.unwrap();
    for address in [None, Some("192.0.2.10".parse().unwrap())] {
        client.withdraw(address).await.unwrap();
        client.announce(address).await.unwrap();
    }
    client.stop(false, 0, |_| Ok(())).await.unwrap();
    client.stop(true, u32::MAX, |_| Ok(())).await.unwrap();
    for patch in [
        api::ServerPatch::default(),
        api::ServerPatch { weight: Some(0), state: Some("drained".to_owned()), deadline: Some(60) },
    ] {
        client.patch(service, server, &patch).await.unwrap();
    }
    for weight in [None, Some(3)] {
        client.add_server(service, &api::NewServer { address: server, weight }).await.unwrap();
    }
    client.remove_server(service, server).await.unwrap();
    let settings = json!({
        "address": "192.0.2.20:443", "protocol": "tcp", "mode": "nat", "scheduler": "wlc",
        "server": [{ "address": "10.0.0.11:8080" }],
    });
    client.add_service(&settings).await.unwrap();
    client.remove_service(service).await.unwrap();
    for filter in [
        api::Filter { all: true, ..api::Filter::default() },
        api::Filter {
            service: Some(service.to_string()),
            server: Some(server),
            client: Some([198, 51, 100, 7].into()),
            all: false,
        },
    ] {
        client.flush(&filter).await.unwrap();
    }
    let address = "198.51.100.7:40112".parse().unwrap();
    let mut question = explain::Question {
        source: address,
        destination: "10.0.0.11:8080".parse().unwrap(),
        protocol: None,
        flags: None,
        port: None,
        length: None,
        fragment: None,
        id: None,
    };
    client.explain(&question).await.unwrap();
    let all = (Some("tcp".to_owned()), Some("SA".to_owned()), Some("a&b=%20 c".to_owned()), Some(1500));
    (question.protocol, question.flags, question.port, question.length) = all;
    (question.fragment, question.id) = (Some("first".to_owned()), Some(7));
    client.explain(&question).await.unwrap();
    let filter = "host 198.51.100.7 and dropped".to_owned();
    for question in [
        capture::Question::default(),
        capture::Question { filter, one_in: Some(10), count: Some(7), seconds: Some(60) },
    ] {
        client.capture(&question, |_| Ok(())).await.unwrap();
    }
    client.connections(|_| Ok(())).await.unwrap();
    let mut place = Place::default();
    client.events(&mut place, false, |_| Ok(())).await.unwrap();
    client.events(&mut place, false, |_| Ok(())).await.unwrap();

    let asked = asked.lock().unwrap();
    let mut operations_asked = BTreeSet::new();
    for request in asked.iter() {
        let (method, target) = (&request.method, &request.target);
        let operation = operation(request).unwrap_or_else(|| panic!("{method} {target}: no operation"));
        assert_eq!(operation.misfit(request), None, "{method} {target}; {REMEDY}");
        operations_asked.insert(operation.name());
    }
    // All but those that are not for `rvs`.
    let mut all: BTreeSet<_> = operations().iter().map(Operation::name).collect();
    all.retain(|name| name != "GET /metrics" && name != "GET /v1/openapi.json");
    assert_eq!(operations_asked, all);
}

#[test]
fn every_kind_of_event() {
    let schema = &document()["components"]["schemas"]["Event"];
    let names: Vec<_> = kinds().iter().map(|kind| json!(kind.name())).collect();
    assert_eq!(schema["properties"]["event"]["examples"], json!(names), "{REMEDY}");
    let mut keys: BTreeSet<String> = ["sequence", "time", "text"].map(str::to_owned).into();
    for kind in kinds() {
        keys.extend(serde_json::to_value(kind).unwrap().as_object().unwrap().keys().cloned());
    }
    let described: BTreeSet<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, described, "of events, described; {REMEDY}");
}

/// What the director refuses stands in the description too.
#[test]
fn limits_and_states_are_those_of_the_program() {
    use crate::config::ServerState;
    use dataplane::service::{MAX_WEIGHT, Protocol};
    let document = document();
    let schemas = &document["components"]["schemas"];
    let patch = &schemas["ServerPatch"]["properties"];
    assert_eq!(patch["state"]["enum"], json!(ServerState::ALL.map(ServerState::name)));
    for weight in [&patch["weight"], &schemas["NewServer"]["properties"]["weight"]] {
        assert_eq!(weight["maximum"], MAX_WEIGHT);
    }
    let protocols: Vec<_> = Protocol::ALL.iter().map(|protocol| protocol.name()).collect();
    assert_eq!(document["components"]["parameters"]["protocol"]["schema"]["enum"], json!(protocols));
}

#[test]
fn it_is_a_description() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let (mut ids, tags) = (BTreeSet::new(), document["tags"].as_array().unwrap());
    for operation in operations() {
        let (name, value) = (operation.name(), &operation.value);
        assert!(ids.insert(value["operationId"].as_str().expect(&name).to_owned()), "{name}: operationId");
        assert!(value["summary"].is_string(), "{name}: summary");
        assert!(tags.iter().any(|tag| tag["name"] == value["tags"][0]), "{name}: tag");
        let braced = operation.path.split('/').filter_map(|one| one.strip_prefix('{')?.strip_suffix('}'));
        let declared = operation.parameters("path").map(|parameter| {
            assert_eq!(parameter["required"], true, "{name}");
            parameter["name"].as_str().unwrap()
        });
        assert_eq!(braced.collect::<Vec<_>>(), declared.collect::<Vec<_>>(), "{name}: parameters");
        for parameter in &operation.parameters {
            let described = parameter["description"].is_string() && parameter["schema"].is_object();
            assert!(described, "{name}: {parameter}");
        }
        for (status, response) in value["responses"].as_object().unwrap() {
            assert!(resolved(response)["description"].is_string(), "{name}: {status}");
        }
    }
}

#[test]
fn references_lead_somewhere_and_everything_is_referred_to() {
    fn collect(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").map(|to| to.as_str().unwrap().to_owned()));
                // Schemes of security are referred to by their names.
                for scheme in map.get("security").and_then(Value::as_array).into_iter().flatten() {
                    let names = scheme.as_object().unwrap().keys();
                    found.extend(names.map(|name| format!("#/components/securitySchemes/{name}")));
                }
                map.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let document = document();
    let mut referred = BTreeSet::new();
    collect(&document, &mut referred);
    let mut there = BTreeSet::new();
    for (kind, components) in document["components"].as_object().unwrap() {
        there
            .extend(components.as_object().unwrap().keys().map(|name| format!("#/components/{kind}/{name}")));
    }
    assert_eq!(referred, there, "referred to, there; {REMEDY}");
}

#[test]
fn every_schema_is_one_and_says_what_it_means() {
    for (name, schema) in document()["components"]["schemas"].as_object().unwrap() {
        assert!(jsonschema::meta::is_valid(schema), "{name}");
        if name.starts_with(super::PREFIX) {
            continue; // The configuration has its own tests.
        }
        assert!(schema["description"].is_string(), "{name} is not described");
        let properties = schema["properties"].as_object().into_iter().flatten();
        for (key, property) in properties.clone() {
            assert!(resolved(property)["description"].is_string(), "{name}: {key} is not described");
        }
        // What is always there is promised, so that answers show whether it is: all but where it depends.
        if schema["type"] == "object" && schema["additionalProperties"].is_null() {
            let keys: BTreeSet<_> = properties.map(|(key, _)| key.as_str()).collect();
            let required = schema["required"].as_array().unwrap().iter().filter_map(Value::as_str);
            assert_eq!(keys, required.collect(), "{name}: keys, required; {REMEDY}");
        }
    }
}
