//! What a hostile or broken site can send. Each is refused with its exact words, recorded against
//! the site, and the run completes with the honest ones.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;
use tributary_proto::calls::Call;
use tributary_proto::channel::access::{Objects, rule};
use tributary_proto::channel::{ConnectOptions, Identity, Role, connect};
use tributary_proto::convert::verdict;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::{Subject, encode};
use tributary_tests::member::{Member, Round, code, filled};
use tributary_tests::{RehearsalRun, Scratch, binaries, seats};

/// A run on a small LoRA contract; nobody trains, the sites of these tests say what they like.
const MANIFEST: &str = r#"
schema_version = 1
name = "siege"
[task]
kind = "binary"
classes = ["no", "yes"]
[backbone]
digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
mean = [0.5]
std = [0.5]
[backbone.architecture]
image_size = 16
patch_size = 8
channels = 1
width = 8
depth = 2
heads = 2
mlp_width = 16
[adapter]
rank = 4
alpha = 8.0
targets = ["q", "v"]
[training]
epochs = 1
batch_size = 4
learning_rate = 1e-3
holdout = 0.2
seed = 1
[rounds]
count = ROUNDS
round_deadline_s = 100
stall_timeout_s = STALL
answer_timeout_s = STALL
lease_s = 60
[quorum]
sites = 2
[limits]
delta_norm_max = 50.0
"#;

/// Two honest sites and mallory, all under real certificates.
struct Siege {
    scratch: Scratch,
    honest: Vec<Member>,
    mallory: Member,
}

impl Siege {
    async fn lay() -> Self {
        Self::lay_for(1, 60).await
    }

    async fn lay_for(rounds: u32, stall_timeout_s: u32) -> Self {
        let mut scratch = tokio::task::spawn_blocking(Scratch::found).await.unwrap();
        for name in ["honest-0", "honest-1", "mallory"] {
            scratch.enroll(name, 0.0, 1);
        }
        let manifest = MANIFEST
            .replace("ROUNDS", &rounds.to_string())
            .replace("STALL", &stall_timeout_s.to_string());
        scratch.start_run(&manifest);
        let address = scratch.federation.address().to_owned();
        let mut members = Vec::new();
        for site in scratch.federation.sites() {
            members.push(Member::connect(&site.directory, &address).await);
        }
        let mallory = members.pop().unwrap();
        Self { scratch, honest: members, mallory }
    }

    /// The honest sites contribute to the open round.
    async fn honest_work(&mut self) {
        for (k, site) in self.honest.iter_mut().enumerate() {
            let round = site.join(10 + k as u64).await;
            site.contribute(&round, 10 + k as u64, 0.5).await;
        }
    }

    /// Mallory agrees to the terms and sends `bytes` whole and announced truthfully.
    async fn send(&mut self, round: &Round, bytes: &[u8]) -> Refusal {
        let subject = self.mallory.subject(round, 7, bytes);
        let refused = self.mallory.upload(&subject, bytes).await.expect("an answer").unwrap_err();
        // The same submission, asked again, has the same answer.
        assert_eq!(self.mallory.submit(&subject).await.unwrap_err(), refused);
        refused
    }

    /// The run completes without mallory and says so in exactly these words.
    async fn completes_without_mallory(mut self, round: u32, detail: &str) {
        self.honest_work().await;
        let show = self.scratch.finish("siege");
        assert_eq!(show["state"], "completed_partial", "{show}");
        let seats = seats(&show, round);
        let found = seats.iter().find(|(site, ..)| site == "mallory").unwrap();
        assert_eq!(found.2, detail);
        let words = show["detail"].as_str().unwrap();
        assert!(words.contains("mallory missing in round"), "{words}");
        let audit = self.scratch.audit();
        assert_eq!(audit["verified"], true, "{audit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_with_nan_is_refused() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let mut values: Vec<Vec<f32>> =
        round.contract.layout.tensors().iter().map(|t| vec![0.0; t.elements()]).collect();
    values[1][5] = f32::NAN;
    let bytes = encode(&siege.mallory.header(&round, 7), &values);
    let refused = siege.send(&round, &bytes).await;
    assert_eq!(refused.code(), "not_finite");
    let words = "blocks.0.attn.q.lora_B[5] is NaN; a delta holds finite numbers only";
    siege.completes_without_mallory(1, words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shape_that_would_broadcast_is_refused_with_a_diff() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let mut header = siege.mallory.header(&round, 7);
    header.tensors[0].shape = vec![1, 8];
    let refused = siege.send(&round, &filled(&header, 0.1)).await;
    assert_eq!(refused.code(), "contract");
    let words =
        "does not fit the adapter contract: blocks.0.attn.q.lora_A: expected [4, 8], found [1, 8]";
    siege.completes_without_mallory(1, words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_and_an_unknown_tensor_are_both_named() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let mut header = siege.mallory.header(&round, 7);
    header.tensors[0].name = "blocks.0.attn.k.lora_A".to_owned();
    siege.send(&round, &filled(&header, 0.1)).await;
    let words = "does not fit the adapter contract: missing blocks.0.attn.q.lora_A [4, 8]; \
                 unexpected blocks.0.attn.k.lora_A [4, 8]";
    siege.completes_without_mallory(1, words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_above_the_norm_bound_is_refused() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let bytes = siege.mallory.delta(&round, 7, 10.0);
    let elements = round.contract.layout.elements() as f64;
    let norm = 10.0 * elements.sqrt();
    let subject = siege.mallory.subject(&round, 7, &bytes);
    siege
        .mallory
        .upload(&subject, &bytes)
        .await
        .unwrap()
        .expect("the norm is judged when it counts");
    let refused = siege.mallory.submit(&subject).await.unwrap_err();
    assert_eq!(refused.code(), "over_norm");
    assert_eq!(siege.mallory.submit(&subject).await.unwrap_err(), refused);
    let words = format!("norm {norm:.6} is above limits.delta_norm_max = 50");
    siege.completes_without_mallory(1, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_base_than_the_rounds_is_refused() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let mut lie = round.clone();
    lie.base = Digest::of(b"another adapter");
    let bytes = siege.mallory.delta(&lie, 7, 0.1);
    siege.send(&round, &bytes).await;
    let words = format!("base: expected {}, found {}", round.base, lie.base);
    siege.completes_without_mallory(1, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_sites_delta_cannot_be_submitted() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let theirs = siege.honest[0].join(10).await;
    let digest = siege.honest[0].contribute(&theirs, 10, 0.5).await;
    // They are there, under this digest, and it did not send them.
    let mut subject = siege.mallory.subject(&round, 7, b"");
    subject.digest = digest.as_bytes().to_vec().into();
    assert_eq!(code(siege.mallory.try_submit(&subject).await), Code::FailedPrecondition);
    // Sent again as its own, they say whose they are.
    let bytes = siege.honest[0].delta(&theirs, 10, 0.5);
    let refused = siege.send(&round, &bytes).await;
    assert_eq!(refused.code(), "wrong");
    let site = siege.honest.remove(1);
    siege.honest = vec![site];
    siege.completes_without_mallory(1, "site: expected mallory, found honest-0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_delta_of_an_old_round_is_refused() {
    let mut siege = Siege::lay_for(2, 60).await;
    let first = siege.mallory.join(7).await;
    let replay = siege.mallory.delta(&first, 7, 0.1);
    siege.mallory.contribute(&first, 7, 0.1).await;
    siege.honest_work().await;
    let second = siege.mallory.join(7).await;
    assert_eq!(second.wire.round, 2);
    // Under its own round it has its old answer; as this round's it is refused.
    let old = siege.mallory.subject(&first, 7, &replay);
    assert_eq!(siege.mallory.submit(&old).await, Ok(()));
    siege.send(&second, &replay).await;
    siege.completes_without_mallory(2, "round: expected 2, found 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delta_of_the_same_round_is_refused_and_the_first_counts() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let first = siege.mallory.contribute(&round, 7, 0.1).await;
    let other = siege.mallory.delta(&round, 7, 0.2);
    let subject = siege.mallory.subject(&round, 7, &other);
    let expected = Refusal::AlreadySubmitted { accepted: first.to_string() };
    assert_eq!(siege.mallory.upload(&subject, &other).await.unwrap(), Err(expected.clone()));
    assert_eq!(siege.mallory.submit(&subject).await, Err(expected));
    siege.honest_work().await;
    let show = siege.scratch.finish("siege");
    assert_eq!(show["state"], "completed", "{show}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cases_cannot_be_raised_after_the_terms() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let bytes = siege.mallory.delta(&round, 7_000, 0.1);
    let subject = siege.mallory.subject(&round, 7_000, &bytes);
    let refused = siege.mallory.upload(&subject, &bytes).await.unwrap().unwrap_err();
    assert_eq!(refused.to_string(), "cases: expected 7, found 7000");
    let honest = siege.mallory.delta(&round, 7, 0.1);
    let Subject::Delta { .. } = siege.mallory.header(&round, 7).subject else { unreachable!() };
    let subject = siege.mallory.subject(&round, 7, &honest);
    siege.mallory.upload(&subject, &honest).await.unwrap().expect("with its own cases it is taken");
    siege.mallory.submit(&subject).await.expect("and counts");
    siege.honest_work().await;
    assert_eq!(siege.scratch.finish("siege")["state"], "completed");
}

/// A1: failed before: the run stood at `aggregating` for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_on_bytes_of_some_cases_is_none_on_others() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let bytes = siege.mallory.delta(&round, 7, 0.1);
    let subject = siege.mallory.subject(&round, 7, &bytes);
    siege.mallory.upload(&subject, &bytes).await.unwrap().expect("an honest delta");
    let again = siege.mallory.accept(&round, 50).await.unwrap_err();
    assert_eq!(again.to_string(), "cases: expected 7, found 50");
    let heavier = siege.mallory.subject(&round, 50, &bytes);
    let refused = siege.mallory.submit(&heavier).await.unwrap_err();
    assert_eq!(refused.to_string(), "cases: expected 7, found 50");
    siege.mallory.submit(&subject).await.expect("as it was declared, it counts");
    siege.honest_work().await;
    assert_eq!(siege.scratch.finish("siege")["state"], "completed");
    assert_eq!(siege.scratch.audit()["verified"], true);
}

/// A1: failed before: counted in round 2 with round 1's header, and the run stood still.
#[tokio::test(flavor = "multi_thread")]
async fn a_delta_sent_in_one_round_cannot_be_submitted_in_the_next() {
    let mut siege = Siege::lay_for(2, 60).await;
    let first = siege.mallory.join(7).await;
    let bytes = siege.mallory.delta(&first, 7, 0.1);
    let subject = siege.mallory.subject(&first, 7, &bytes);
    siege.mallory.upload(&subject, &bytes).await.unwrap().expect("an honest delta");
    siege.mallory.decline(&first).await;
    siege.honest_work().await;
    let second = siege.mallory.join(7).await;
    let late = siege.mallory.subject(&second, 7, &bytes);
    assert_eq!(code(siege.mallory.try_submit(&late).await), Code::FailedPrecondition);
    siege.send(&second, &bytes).await;
    siege.completes_without_mallory(2, "round: expected 2, found 1").await;
}

/// A1: failed before: counted in one run with the other's header, and that run stood still.
#[tokio::test(flavor = "multi_thread")]
async fn a_delta_sent_in_one_run_cannot_be_submitted_in_another() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let bytes = siege.mallory.delta(&round, 7, 0.1);
    let subject = siege.mallory.subject(&round, 7, &bytes);
    siege.mallory.upload(&subject, &bytes).await.unwrap().expect("an honest delta");
    siege.mallory.submit(&subject).await.expect("it counts");
    siege.honest_work().await;
    assert_eq!(siege.scratch.finish("siege")["state"], "completed");
    let manifest = MANIFEST.replace("\"siege\"", "\"other\"").replace("ROUNDS", "1");
    siege.scratch.start_run(&manifest.replace("STALL", "60"));
    let other = siege.mallory.join(7).await;
    let stray = siege.mallory.subject(&other, 7, &bytes);
    assert_eq!(code(siege.mallory.try_submit(&stray).await), Code::FailedPrecondition);
    siege.mallory.contribute(&other, 7, 0.1).await;
    siege.honest_work().await;
    assert_eq!(siege.scratch.finish("other")["state"], "completed");
    assert_eq!(siege.scratch.audit()["verified"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_the_size_is_refused_before_a_byte_is_read() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let honest = siege.mallory.delta(&round, 7, 0.1);
    let mut subject = siege.mallory.subject(&round, 7, &honest);
    subject.bytes = 10 * (honest.len() as u64) + (10 << 20);
    let refused = siege.mallory.upload(&subject, &honest).await.unwrap().unwrap_err();
    let words = format!("{} bytes; the contract allows {}", subject.bytes, honest.len());
    assert_eq!(refused.to_string(), words);
    siege.completes_without_mallory(1, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_delta_are_refused() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    siege.send(&round, &[0x50; 300]).await;
    siege.completes_without_mallory(1, "malformed bytes: does not begin with TRIBTNS1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_transit_is_no_verdict() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let bytes = siege.mallory.delta(&round, 7, 0.1);
    let subject = siege.mallory.subject(&round, 7, &bytes);
    let mut damaged = bytes.clone();
    let last = damaged.len() - 4;
    damaged[last] ^= 1;
    let refused = siege.mallory.upload(&subject, &damaged).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), "digest");
    siege.mallory.upload(&subject, &bytes).await.unwrap().expect("sent again, it is whole");
    siege.mallory.submit(&subject).await.expect("and counts");
    siege.honest_work().await;
    assert_eq!(siege.scratch.finish("siege")["state"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_byte_a_minute_is_lost_as_stalled() {
    let mut siege = Siege::lay_for(1, 2).await;
    let round = siege.mallory.join(7).await;
    let bytes = siege.mallory.delta(&round, 7, 0.1);
    let first = v1::UploadChunk {
        subject: Some(siege.mallory.subject(&round, 7, &bytes)),
        offset: 0,
        data: bytes[..1].to_vec().into(),
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(first).await.unwrap();
    let mut calls = siege.mallory.calls.clone();
    let drip = tokio::spawn(async move {
        calls.upload(tokio_stream::wrappers::ReceiverStream::new(receiver)).await
    });
    siege.honest_work().await;
    let show = siege.scratch.finish("siege");
    assert_eq!(show["state"], "completed_partial", "{show}");
    let seats = seats(&show, 1);
    assert_eq!(seats.iter().find(|s| s.0 == "mallory").unwrap().2, "no progress for 2 s at step 0");
    drop(sender);
    let late = drip.await.unwrap();
    assert!(late.is_err() || late.unwrap().into_inner().durable_offset <= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_disturbs_nobody() {
    let siege = Siege::lay_for(1, 2).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0xff, 0xff, 1]] {
        let mut stream = TcpStream::connect(siege.scratch.federation.address()).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        // At most an alert, then the end; a hang would fail here.
        let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("the end");
        assert!(answer.len() < 100);
    }
    siege.completes_without_mallory(1, "did not answer within 2 s").await;
}

/// Makes a call with an empty message; gives the status.
async fn bare(channel: Channel, path: &'static str) -> Code {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let (path, codec) = (PathAndQuery::from_static(path), ProstCodec::<(), ()>::default());
    let answer = client.unary(tonic::Request::new(()), path, codec).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// Every call of the proto, with nothing in it, by every role: what the server answers is what
/// `access::rule` says.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_is_answered_to_the_roles_of_its_row_alone() {
    let scratch = tokio::task::spawn_blocking(|| {
        let mut scratch = Scratch::found();
        scratch.enroll("alpha", 1.0, 1);
        let kit = scratch.folder.path().join("carl.kit").to_string_lossy().into_owned();
        scratch.federation.operator(["auditor", "invite", "carl", "--out", &kit]).unwrap();
        let carl = scratch.folder.path().join("carl").to_string_lossy().into_owned();
        let mut enroll = std::process::Command::new(&binaries().operator);
        let address = scratch.federation.address();
        let arguments = ["enroll", &kit, "--identity", &carl, "--address", address];
        assert!(enroll.args(arguments).output().unwrap().status.success());
        scratch
    });
    let scratch = scratch.await.unwrap();
    let address = scratch.federation.address();
    let members = [
        (Role::Operator, scratch.federation.operator_identity()),
        (Role::Auditor, scratch.folder.path().join("carl")),
        (Role::Site, scratch.federation.sites()[0].directory.join("identity")),
    ];
    for (role, folder) in members {
        let identity = Identity::load(&folder).unwrap();
        let options = ConnectOptions::default();
        let channel = connect(address, &identity, &options).await.unwrap();
        for call in Call::ALL {
            let roles = rule(call).roles;
            let allowed = roles.is_empty() || roles.contains(&role);
            let answer = bare(channel.clone(), call.path()).await;
            assert_eq!(answer != Code::PermissionDenied, allowed, "{role:?} {call:?}: {answer:?}");
            assert_ne!(answer, Code::Unimplemented, "{call:?}");
        }
        let unknown = bare(channel, "/tributary.v1.Operator/Drop").await;
        assert_eq!(unknown, Code::Unimplemented);
    }
}

/// A15. Makes each call for a site's own objects with those of a run that does not ask the site. Failed before: any site
/// that knew a digest could fetch the adapters of every run.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_own_objects_reaches_nothing_of_a_run_that_does_not_ask_the_site() {
    let scratch = tokio::task::spawn_blocking(|| {
        let mut scratch = Scratch::found();
        for name in ["alpha", "mallory"] {
            scratch.enroll(name, 0.0, 1);
        }
        let more = "[cohort]\nsites = [\"alpha\"]\n".to_owned();
        scratch.start_run(&RehearsalRun { more, ..RehearsalRun::new("theirs", 1, 1) }.to_toml());
        scratch
    });
    let scratch = scratch.await.unwrap();
    let address = scratch.federation.address();
    let [alpha, mallory] = [0, 1].map(|site| scratch.federation.sites()[site].directory.clone());
    let mut alpha = Member::connect(&alpha, address).await;
    let mut mallory = Member::connect(&mallory, address).await;
    let round = alpha.join(10).await;
    let (run, number) = (round.wire.run.clone(), round.wire.round);
    let theirs = alpha.delta(&round, 10, 0.5);
    let subject = mallory.subject(&round, 10, &theirs);
    let outside = Refusal::NotInCohort { round: number };
    for call in Call::ALL.into_iter().filter(|call| rule(*call).objects == Objects::Own) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "a row that changes fails the test")]
        let refused = match call {
            Call::EnrolmentEnroll => continue, // Its object is the token's: `a_kit_works_once`.
            Call::SiteHello => {
                let hello = mallory.calls.hello(v1::HelloRequest::default()).await.unwrap();
                assert_eq!(hello.into_inner().member, "site/mallory");
                continue;
            }
            Call::SiteNextAssignment => {
                let request = v1::NextAssignmentRequest { wait_ms: 1, ..Default::default() };
                let given = mallory.calls.next_assignment(request).await.unwrap().into_inner();
                assert_eq!(given, v1::NextAssignmentReply::default());
                continue;
            }
            // An answer to no question of its own has no effect: the seats below.
            Call::SiteAnswerInquiry => {
                let request = v1::AnswerInquiryRequest { id: "1".to_owned(), ..Default::default() };
                mallory.calls.answer_inquiry(request).await.unwrap();
                continue;
            }
            Call::SiteHeartbeat => {
                let beat =
                    v1::HeartbeatRequest { run: run.clone(), round: number, ..Default::default() };
                let reply = mallory.calls.heartbeat(beat).await.unwrap().into_inner();
                assert_eq!(reply.stop_reason, outside.to_string());
                continue;
            }
            Call::SiteFetchAdapter => {
                let digest = round.wire.base_digest.clone();
                let fetch = v1::FetchRequest { run: run.clone(), digest, offset: 0 };
                let refused = code(mallory.calls.fetch_adapter(fetch.clone()).await);
                assert_eq!(refused, Code::PermissionDenied);
                alpha.calls.fetch_adapter(fetch).await.unwrap();
                continue;
            }
            Call::SiteAcceptTerms => mallory.accept(&round, 10).await,
            Call::SiteDecline => mallory.try_decline(&round).await,
            Call::SiteUploadStatus => {
                let reply = mallory.calls.upload_status(subject.clone()).await.unwrap();
                verdict(reply.into_inner().refusal)
            }
            Call::SiteUpload => mallory.upload(&subject, &theirs).await.unwrap().map(drop),
            Call::SiteSubmit => mallory.submit(&subject).await,
            other => panic!("{other:?} reaches its caller's own objects: add it here"),
        };
        assert_eq!(refused, Err(outside.clone()), "{call:?}");
    }
    alpha.contribute(&round, 10, 0.5).await;
    let show = scratch.finish("theirs");
    let names: Vec<String> = seats(&show, 1).into_iter().map(|(site, ..)| site).collect();
    assert_eq!((&show["state"], names), (&"completed".into(), vec!["alpha".to_owned()]));
}

/// A proof is made of the open round alone: any other would have the coordinator read the whole run for each call.
#[tokio::test(flavor = "multi_thread")]
async fn evidence_is_given_of_the_open_round_and_its_base_alone() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let asked = v1::EvidenceRequest {
        run: round.wire.run.clone(),
        round: round.wire.round,
        base_digest: round.wire.base_digest.clone(),
        old_size: 0,
        held_note: String::new(),
    };
    let proved = siege.mallory.calls.evidence(asked.clone()).await.unwrap().into_inner();
    assert_eq!(proved.leaves.len(), 2, "the run's start, which has the base, and the opening");
    for wrong in [
        v1::EvidenceRequest { round: 99, ..asked.clone() },
        v1::EvidenceRequest { base_digest: vec![7; 32].into(), ..asked.clone() },
        v1::EvidenceRequest { run: "another".to_owned(), ..asked },
    ] {
        assert_eq!(code(siege.mallory.calls.evidence(wrong).await), Code::NotFound);
    }
    siege.honest_work().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_was_never_uploaded_cannot_be_submitted() {
    let mut siege = Siege::lay().await;
    let round = siege.mallory.join(7).await;
    let subject = siege.mallory.subject(&round, 7, b"never sent");
    assert_eq!(code(siege.mallory.try_submit(&subject).await), Code::FailedPrecondition);
}
