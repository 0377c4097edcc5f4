//! The DNS check: a name server is well if it answers a question with the right code and, if asked, the right data.
//!
//! The question has a random number, and with UDP a local port of its own. What does not answer it (another number,
//! another question, no answer at all) is passed over: it may be late, or a stranger's. Then time decides.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RData};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::datagram::{self, Datagrams};
use super::{Outcome, Probe};
use crate::config::checks::{self, Transport, rcode_name};
use crate::text::first_line;

/// Asks a name server.
pub(super) struct Dns {
    check: Arc<checks::Dns>,
    question: Query,
}

impl Dns {
    pub(super) fn new(check: &Arc<checks::Dns>) -> Dns {
        Dns { check: Arc::clone(check), question: Query::query(check.name.clone(), check.record) }
    }

    async fn ask(&self, server: SocketAddr) -> io::Result<Outcome> {
        let mut message = Message::query();
        message.add_query(self.question.clone());
        // As keepalived asks: a resolver refuses or ignores what it must not look up elsewhere.
        message.metadata.recursion_desired = true;
        let number = message.metadata.id;
        let bytes = message.to_vec().map_err(io::Error::other)?;
        match self.check.transport {
            Transport::Udp => {
                let socket = Datagrams::udp(server)?;
                socket.send(&bytes)?;
                loop {
                    if let Some(outcome) = self.judge(number, &socket.receive().await?) {
                        return Ok(outcome);
                    }
                }
            }
            Transport::Tcp => {
                let mut stream = TcpStream::connect(server).await?;
                // Each message has its length before it (RFC 7766).
                let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
                stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
                loop {
                    let answer = match read_message(&mut stream).await {
                        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                            return Ok(Outcome::failed("closed without an answer"));
                        }
                        answer => answer?,
                    };
                    if let Some(outcome) = self.judge(number, &answer) {
                        return Ok(outcome);
                    }
                }
            }
        }
    }

    /// What a message says of the server; nothing if it does not answer our question.
    fn judge(&self, number: u16, bytes: &[u8]) -> Option<Outcome> {
        if bytes.get(..2)? != number.to_be_bytes() {
            return None;
        }
        let Ok(message) = Message::from_vec(bytes) else {
            return Some(Outcome::failed("answered what is no DNS message"));
        };
        let rcode = message.metadata.response_code;
        // A server that refuses a question need not repeat it.
        let ours = message.queries == [self.question.clone()]
            || message.queries.is_empty() && rcode != ResponseCode::NoError;
        if message.metadata.message_type != MessageType::Response || !ours {
            return None;
        }
        let said = rcode_name(rcode);
        if rcode != self.check.rcode {
            return Some(Outcome::failed(format!(
                "answered {said}; expected {}",
                rcode_name(self.check.rcode)
            )));
        }
        if self.check.expect.is_empty() {
            return Some(Outcome::passed(format!("answered {said}")));
        }
        let of_type = message.answers.iter().filter(|answer| answer.record_type() == self.check.record);
        let answers: Vec<String> = of_type.filter_map(|answer| presentation(&answer.data)).collect();
        if let Some(found) = self.check.expect.iter().find(|expected| answers.contains(expected)) {
            return Some(Outcome::passed(format!("answered {}", first_line(found.as_bytes()))));
        }
        let answered = match answers.is_empty() {
            true => format!("no {} record", self.check.record),
            false => first_line(answers.join(", ").as_bytes()),
        };
        // By TCP they would all have been there.
        let cut = if message.metadata.truncation { " (truncated)" } else { "" };
        let expected = first_line(self.check.expect.join(" or ").as_bytes());
        Some(Outcome::failed(format!("answered {answered}{cut}; expected {expected}")))
    }
}

impl Probe for Dns {
    fn probe(&self, address: SocketAddr) -> BoxFuture<'_, Outcome> {
        let of_error = match self.check.transport {
            Transport::Udp => datagram::of_error,
            Transport::Tcp => Outcome::of_error,
        };
        async move { self.ask(address).await.unwrap_or_else(|error| of_error(&error)) }.boxed()
    }
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// The data of a record in the form in which the configuration has what is expected.
fn presentation(data: &RData) -> Option<String> {
    let name = |name: &Name| name.to_lowercase().to_ascii();
    Some(match data {
        RData::A(address) => address.to_string(),
        RData::AAAA(address) => address.to_string(),
        RData::CNAME(target) => name(target),
        RData::NS(target) => name(target),
        RData::PTR(target) => name(target),
        RData::MX(mx) => format!("{} {}", mx.preference, name(&mx.exchange)),
        RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, name(&srv.target)),
        RData::SOA(soa) => format!(
            "{} {} {} {} {} {} {}",
            name(&soa.mname),
            name(&soa.rname),
            soa.serial,
            soa.refresh,
            soa.retry,
            soa.expire,
            soa.minimum
        ),
        RData::TXT(text) => text.to_string(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::str::FromStr;

    use hickory_proto::rr::rdata::{A, CNAME, MX, SOA, TXT};
    use hickory_proto::rr::{Record, RecordType};
    use proptest::prelude::*;
    use tokio::net::{TcpListener, UdpSocket};

    use super::super::fixture::{kind, loopbacks, outcome};
    use super::*;

    /// Makes the messages that answer a question: their bytes, so that they may be wrong.
    type Answers = fn(&Message) -> Vec<Vec<u8>>;

    async fn serve(host: impl Into<IpAddr>, answers: Answers) -> SocketAddr {
        let socket = UdpSocket::bind((host.into(), 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut datagram = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut datagram).await {
                let question = Message::from_vec(&datagram[..length]).unwrap();
                assert!(question.metadata.recursion_desired);
                for answer in answers(&question) {
                    socket.send_to(&answer, client).await.unwrap();
                }
            }
        });
        address
    }

    async fn serve_tcp(host: impl Into<IpAddr>, answers: Answers) -> SocketAddr {
        let listener = TcpListener::bind((host.into(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let question = Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap();
            for answer in answers(&question) {
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        address
    }

    fn answer(question: &Message, rcode: ResponseCode, data: &[RData]) -> Message {
        let mut answer = Message::error_msg(question.metadata.id, question.metadata.op_code, rcode);
        answer.add_queries(question.queries.clone());
        let name = &question.queries[0].name;
        answer.add_answers(data.iter().map(|data| Record::from_rdata(name.clone(), 60, data.clone())));
        answer
    }

    fn name(name: &str) -> Name {
        Name::from_str(name).unwrap()
    }

    fn well(question: &Message) -> Vec<Vec<u8>> {
        assert_eq!(question.queries, [Query::query(name("www.example.org."), RecordType::A)]);
        let data = [
            RData::CNAME(CNAME(name("web.example.org."))),
            RData::A(A(Ipv4Addr::new(192, 0, 2, 1))),
            RData::A(A(Ipv4Addr::new(192, 0, 2, 2))),
        ];
        vec![answer(question, ResponseCode::NoError, &data).to_vec().unwrap()]
    }

    const WWW: &str = "kind = \"dns\"\nname = \"WWW.example.org\"\ntype = \"A\"";

    #[tokio::test]
    async fn the_right_answer_and_a_wrong_one() {
        for host in loopbacks() {
            let server = serve(host, well).await;
            assert_eq!(outcome(&kind(WWW), server).await, Outcome::passed("answered NOERROR"), "{host}");
        }
        let server = serve([127, 84, 4, 1], well).await;
        let check = kind(&format!("{WWW}\nexpect = [\"192.0.2.9\", \"192.0.2.2\"]"));
        assert_eq!(outcome(&check, server).await, Outcome::passed("answered 192.0.2.2"));
        let check = kind(&format!("{WWW}\nexpect = [\"192.0.2.9\", \"192.0.2.8\"]"));
        let why = "answered 192.0.2.1, 192.0.2.2; expected 192.0.2.9 or 192.0.2.8";
        assert_eq!(outcome(&check, server).await, Outcome::failed(why));
    }

    #[tokio::test]
    async fn over_tcp() {
        let check = kind(&format!("{WWW}\ntransport = \"tcp\"\nexpect = [\"192.0.2.2\"]"));
        for host in loopbacks() {
            let server = serve_tcp(host, well).await;
            assert_eq!(outcome(&check, server).await, Outcome::passed("answered 192.0.2.2"), "{host}");
        }
        // Of another question, and then nothing.
        let other = |question: &Message| {
            let mut other = answer(question, ResponseCode::NoError, &[]);
            other.metadata.id ^= 1;
            vec![other.to_vec().unwrap()]
        };
        let server = serve_tcp([127, 84, 4, 3], other).await;
        assert_eq!(outcome(&check, server).await, Outcome::failed("closed without an answer"));
        assert_eq!(outcome(&check, server).await, Outcome::failed("connection refused"));
    }

    #[tokio::test]
    async fn no_such_name() {
        let nothing =
            |question: &Message| vec![answer(question, ResponseCode::NXDomain, &[]).to_vec().unwrap()];
        let server = serve([127, 84, 4, 4], nothing).await;
        assert_eq!(outcome(&kind(WWW), server).await, Outcome::failed("answered NXDOMAIN; expected NOERROR"));
        let check = kind(&format!("{WWW}\nrcode = \"NXDOMAIN\""));
        assert_eq!(outcome(&check, server).await, Outcome::passed("answered NXDOMAIN"));
    }

    /// Each of these would fail the check if it were heeded; the right answer comes last.
    #[tokio::test]
    async fn what_does_not_answer_the_question_is_passed_over() {
        let strays = |question: &Message| {
            let fail = answer(question, ResponseCode::ServFail, &[]);
            let mut other_number = fail.clone();
            other_number.metadata.id ^= 0x100;
            let mut other_question = fail.clone();
            other_question.queries[0].set_query_type(RecordType::AAAA);
            let mut no_answer = fail.clone();
            no_answer.metadata.message_type = MessageType::Query;
            let mut strays: Vec<Vec<u8>> =
                [other_number, other_question, no_answer].iter().map(|m| m.to_vec().unwrap()).collect();
            strays.push(vec![]);
            strays.extend(well(question));
            strays
        };
        let server = serve([127, 84, 4, 5], strays).await;
        assert_eq!(outcome(&kind(WWW), server).await, Outcome::passed("answered NOERROR"));
        let only_strays = |question: &Message| {
            let mut other = answer(question, ResponseCode::NoError, &[]);
            other.metadata.id ^= 1;
            vec![other.to_vec().unwrap()]
        };
        let server = serve([127, 84, 4, 6], only_strays).await;
        let check = kind(&format!("{WWW}\ntimeout = \"300ms\""));
        assert_eq!(outcome(&check, server).await, Outcome::failed("timed out after 300ms"));
    }

    #[tokio::test]
    async fn refusals_noise_and_what_is_cut() {
        let refused = |question: &Message| {
            let mut refused = answer(question, ResponseCode::Refused, &[]);
            refused.queries.clear();
            vec![refused.to_vec().unwrap()]
        };
        let server = serve([127, 84, 4, 7], refused).await;
        assert_eq!(outcome(&kind(WWW), server).await, Outcome::failed("answered REFUSED; expected NOERROR"));
        let noise = |question: &Message| vec![[&question.metadata.id.to_be_bytes()[..], b"noise"].concat()];
        let server = serve([127, 84, 4, 8], noise).await;
        assert_eq!(outcome(&kind(WWW), server).await, Outcome::failed("answered what is no DNS message"));
        let cut = |question: &Message| {
            let mut cut = answer(question, ResponseCode::NoError, &[]);
            cut.metadata.truncation = true;
            vec![cut.to_vec().unwrap()]
        };
        let server = serve([127, 84, 4, 9], cut).await;
        let check = kind(&format!("{WWW}\nexpect = [\"192.0.2.1\"]"));
        let why = "answered no A record (truncated); expected 192.0.2.1";
        assert_eq!(outcome(&check, server).await, Outcome::failed(why));
    }

    #[tokio::test]
    async fn nobody_listens() {
        let socket = UdpSocket::bind((Ipv4Addr::new(127, 84, 4, 10), 0)).await.unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let server = SocketAddr::new([127, 84, 4, 10].into(), port);
        assert_eq!(outcome(&kind("kind = \"dns\""), server).await, Outcome::failed("port unreachable"));
    }

    /// What a server answers and what an operator types for it come together.
    #[tokio::test]
    async fn answers_of_other_types() {
        let everything = |question: &Message| {
            let data = match question.queries[0].query_type {
                RecordType::MX => RData::MX(MX::new(10, name("Mail.example.org."))),
                RecordType::TXT => RData::TXT(TXT::new(vec!["v=spf1 ".to_owned(), "-all".to_owned()])),
                RecordType::SOA => {
                    RData::SOA(SOA::new(name("NS.example.org."), name("root.example.org."), 1, 2, 3, 4, 5))
                }
                other => panic!("{other}"),
            };
            vec![answer(question, ResponseCode::NoError, &[data]).to_vec().unwrap()]
        };
        let server = serve([127, 84, 4, 11], everything).await;
        for (record, expected, answered) in [
            ("MX", "10 mail.Example.org", "10 mail.example.org."),
            ("TXT", "v=spf1 -all", "v=spf1 -all"),
            (
                "SOA",
                "ns.example.org root.example.org 1 2 3 4 5",
                "ns.example.org. root.example.org. 1 2 3 4 5",
            ),
        ] {
            let check = kind(&format!("kind = \"dns\"\ntype = \"{record}\"\nexpect = [\"{expected}\"]"));
            assert_eq!(outcome(&check, server).await, Outcome::passed(format!("answered {answered}")));
        }
    }

    proptest! {
        /// Whatever a stranger sends: bytes, or an answer with some of its bytes changed.
        #[test]
        fn no_message_makes_it_panic(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let dns = Dns::new(&Arc::new(checks::Dns {
                name: name("www.example.org."),
                record: RecordType::A,
                expect: vec!["192.0.2.9".to_owned()],
                rcode: ResponseCode::NoError,
                transport: Transport::Udp,
            }));
            dns.judge(0, &[&[0, 0][..], &noise].concat());
            let mut question = Message::query();
            question.add_query(dns.question.clone());
            let mut bytes = well(&question).remove(0);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let outcome = dns.judge(question.metadata.id, &bytes);
            let passed = matches!(outcome, Some(Outcome::Passed { .. }));
            prop_assert!(!passed || bytes.windows(4).any(|window| window == [192, 0, 2, 9]));
        }
    }
}
