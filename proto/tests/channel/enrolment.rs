//! Enrolment from the member's side: what it believes, and what it does when the answer is lost.

use std::sync::{Arc, Mutex};

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use tonic::{Code, Status};
use tributary_proto::channel::{
    EnrollError, EnrollOptions, Identity, connect_failure, enroll, status_failure,
};
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::outcome::ExitCode;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use crate::fixture::{Authority, Leaf, Server, new_key};
use crate::identity::kit;

fn public_key(csr: &[u8]) -> SubjectPublicKeyInfo {
    let (_, request) = X509CertificationRequest::from_der(csr).unwrap();
    SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw).unwrap()
}

/// Signs whatever comes as `uri`, over the request's key or another.
fn sign(authority: &Authority, uri: &str, key: &impl PublicKeyData) -> v1::EnrollReply {
    let certificate = Leaf::good(uri).params().signed_by(key, &authority.issuer).unwrap();
    v1::EnrollReply {
        certificate_der: certificate.der().to_vec().into(),
        root_der: authority.root.to_vec().into(),
        member: "ignored".to_owned(),
        log_verifier_key: "tributary/rivers+0+key".to_owned(),
    }
}

const ISAR: &str = "tributary://rivers/site/isar";

#[tokio::test]
async fn after_a_lost_answer_the_same_key_asks_again_and_the_identity_works() {
    let authority = Arc::new(Authority::new());
    let keys = Arc::new(Mutex::new(Vec::new()));
    let (signer, seen) = (authority.clone(), keys.clone());
    let server = Server::enrolling(
        &authority,
        Arc::new(move |request| {
            let key = public_key(&request.csr_der);
            seen.lock().unwrap().push((request.token, key.subject_public_key_info()));
            if seen.lock().unwrap().len() == 1 {
                return Err(Status::unavailable("the answer is lost"));
            }
            Ok(sign(&signer, ISAR, &key))
        }),
    )
    .await;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("identity");
    let kit = kit(&server.address, &authority);
    let options = EnrollOptions::default();

    let lost = enroll(&kit, &directory, &options).await.unwrap_err();
    assert_eq!(lost.failure().exit, ExitCode::Connection, "{lost}");
    assert!(Identity::load(&directory).is_err());
    let enrolled = enroll(&kit, &directory, &options).await.unwrap();
    {
        let keys = keys.lock().unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys.first(), keys.last());
        assert_eq!(keys.first().unwrap().0, "a-token");
    }
    let loaded = Identity::load(&directory).unwrap();
    assert_eq!(loaded.certificate, enrolled.certificate);
    let mut client = server.connect(&loaded).await.unwrap();
    let reply = client.hello(v1::HelloRequest::default()).await.unwrap().into_inner();
    assert_eq!(reply.member, "site/isar");

    // The directory is taken now; only a renewal of the same member may write there.
    let taken = enroll(&kit, &directory, &options).await.unwrap_err();
    assert!(matches!(taken, EnrollError::AlreadyEnrolled { .. }), "{taken}");
    assert_eq!(taken.failure().exit, ExitCode::Refused);
    let renewal = EnrollOptions { renew: true, ..EnrollOptions::default() };
    let renewed = enroll(&kit, &directory, &renewal).await.unwrap();
    assert_ne!(renewed.certificate, enrolled.certificate);
    let mut other = kit.clone();
    other.member = "site/inn".parse().unwrap();
    let refused = enroll(&other, &directory, &renewal).await.unwrap_err();
    assert!(matches!(refused, EnrollError::AlreadyEnrolled { .. }), "{refused}");
}

#[tokio::test]
async fn a_coordinator_of_another_authority_never_sees_the_token() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = Server::enrolling(
        &theirs,
        Arc::new(|_| -> Result<v1::EnrollReply, Status> { panic!("the token was sent") }),
    )
    .await;
    let directory = tempfile::tempdir().unwrap();
    let kit = kit(&server.address, &ours);
    let error = enroll(&kit, directory.path(), &EnrollOptions::default()).await.unwrap_err();
    let EnrollError::Connect(error) = error else { panic!("{error}") };
    let failure = connect_failure(&error);
    assert_eq!((failure.code, failure.exit), ("server_not_trusted", ExitCode::Connection));
    assert!(failure.message.contains(&Digest::of(&ours.root).to_string()), "{failure}");
}

#[tokio::test]
async fn the_coordinators_no_comes_through_in_its_own_words() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let directory = tempfile::tempdir().unwrap();
    let kit = kit(&server.address, &authority);
    let error = enroll(&kit, directory.path(), &EnrollOptions::default()).await.unwrap_err();
    let failure = error.failure();
    assert_eq!(failure.exit, ExitCode::Refused);
    assert!(failure.message.contains("no token"), "{failure}");
}

#[tokio::test]
async fn an_answer_that_breaks_the_kits_promise_is_not_stored() {
    let authority = Arc::new(Authority::new());
    let other = Arc::new(Authority::new());
    type Answer = fn(&Authority, &Authority, &SubjectPublicKeyInfo) -> v1::EnrollReply;
    let answers: [(&str, Answer); 5] = [
        ("operator/anna", |a, _, key| sign(a, "tributary://rivers/operator/anna", key)),
        ("lakes", |a, _, key| sign(a, "tributary://lakes/site/isar", key)),
        ("another key", |a, _, _| sign(a, ISAR, &new_key())),
        ("authority", |_, b, key| sign(b, ISAR, key)),
        ("BadSignature", |a, b, key| v1::EnrollReply {
            root_der: a.root.to_vec().into(),
            ..sign(b, ISAR, key)
        }),
    ];
    for (word, answer) in answers {
        let (ours, theirs) = (authority.clone(), other.clone());
        let server = Server::enrolling(
            &authority,
            Arc::new(move |request| Ok(answer(&ours, &theirs, &public_key(&request.csr_der)))),
        )
        .await;
        let directory = tempfile::tempdir().unwrap();
        let kit = kit(&server.address, &authority);
        let error = enroll(&kit, directory.path(), &EnrollOptions::default()).await.unwrap_err();
        assert!(matches!(error, EnrollError::Answer(_)), "{error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
        assert!(!directory.path().join("identity.toml").exists());
    }
}

#[tokio::test]
async fn without_a_certificate_only_enrolment_can_be_called() {
    let authority = Authority::new();
    let server = Server::start(&authority).await;
    let channel = crate::live::without_certificate(&server, &authority).await;
    let mut site = v1::site_client::SiteClient::new(channel.clone());
    let status = site.hello(v1::HelloRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status_failure(&server.address, &status).exit, ExitCode::Connection);
    let status = site.fetch_adapter(v1::FetchRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    let mut enrolment = v1::enrolment_client::EnrolmentClient::new(channel);
    let status = enrolment.enroll(v1::EnrollRequest::default()).await.unwrap_err();
    assert_eq!(status.message(), "no token");
}
