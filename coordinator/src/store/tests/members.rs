//! Invitations, enrolment, standing.

use super::*;

pub(super) fn site(name: &str) -> Member {
    format!("site/{name}").parse().unwrap()
}

pub(super) fn certificate(content: &str) -> Certificate {
    let serial_hex = Digest::of(content.as_bytes()).short();
    Certificate { der: content.as_bytes().to_vec(), serial_hex, expires: at(1_000_000) }
}

pub(super) fn enrolled(member: &Member, certificate: &Certificate) -> RegistryEvent {
    let digest = Digest::of(&certificate.der);
    RegistryEvent::Enrolled { member: member.to_string(), certificate: digest }
}

pub(super) fn suspended(member: &Member) -> RegistryEvent {
    let (reason, by) = ("late with papers".to_owned(), "operator/anna".to_owned());
    RegistryEvent::Suspended { member: member.to_string(), reason, by }
}

async fn invite(store: &Store, member: &Member, token: &str) -> Digest {
    let token_digest = Digest::of(token.as_bytes());
    let invitation =
        Invitation { token_digest, member: member.clone(), expires: at(9_000), used: None };
    store.invite(at(1), &invitation, invited(member)).await.unwrap();
    token_digest
}

async fn enrol(store: &Store, member: &Member, token: &str) -> Certificate {
    let token = invite(store, member, token).await;
    let certificate = certificate(&format!("certificate {token}"));
    let event = enrolled(member, &certificate);
    store.enrol(at(2), token, Digest::of(b"key"), &certificate, event).await.unwrap();
    certificate
}

async fn state_of(store: &Store, member: &Member) -> MemberState {
    let rows = store.members().await.unwrap();
    rows.iter().find(|row| row.member == *member).expect("a row").state
}

#[tokio::test]
async fn a_token_gives_one_key_one_certificate_however_often_it_asks() {
    let room = Room::new();
    let store = room.open().await;
    let (member, key, other) = (site("a"), Digest::of(b"key"), Digest::of(b"other key"));
    let token = invite(&store, &member, "secret-token").await;
    assert_eq!(store.open_invitations(at(2)).await.unwrap().len(), 1);
    assert_eq!(store.open_invitations(at(9_000)).await.unwrap(), [], "expired");

    let first = certificate("first");
    let event = || enrolled(&member, &first);
    let late = store.enrol(at(9_000), token, key, &first, event()).await;
    assert!(matches!(late, Err(EnrolError::Expired(_))), "{late:?}");
    let unknown = store.enrol(at(2), Digest::of(b"guess"), key, &first, event()).await;
    assert!(matches!(unknown, Err(EnrolError::UnknownToken)), "{unknown:?}");
    assert_eq!(store.members().await.unwrap(), []);

    assert_eq!(store.enrol(at(2), token, key, &first, event()).await.unwrap(), first.der);
    let second = certificate("second");
    // The answer was lost: the same key asks again, even after the token's time.
    let again = store.enrol(at(99_999), token, key, &second, event()).await.unwrap();
    assert_eq!(again, first.der);
    let stolen = store.enrol(at(2), token, other, &second, event()).await;
    assert!(matches!(stolen, Err(EnrolError::Used)), "{stolen:?}");

    let [row] = &store.members().await.unwrap()[..] else { panic!("one member") };
    assert_eq!((&row.member, row.state), (&member, MemberState::Active));
    assert_eq!((&row.serial_hex, &row.certificate), (&first.serial_hex, &first.der));
    assert_eq!(store.open_invitations(at(2)).await.unwrap(), []);
    let used = store.invitation(token).await.unwrap().unwrap().used;
    assert_eq!(used, Some((key, first.der.clone())));
    let records = store.records(&Stream::Registry).await.unwrap();
    assert_eq!(records.len(), 2, "invited, enrolled; nothing of the refused");
}

#[tokio::test]
async fn no_secret_and_no_certificate_is_in_the_history() {
    let room = Room::new();
    let store = room.open().await;
    let certificate = enrol(&store, &site("a"), "secret-token").await;
    let token = Digest::of(b"secret-token");
    for leaf in store.leaves(0, 10).await.unwrap() {
        let text = String::from_utf8(leaf.bytes).unwrap();
        for secret in ["secret-token", &token.to_hex(), &Digest::of(b"key").to_hex()] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(!text.contains(std::str::from_utf8(&certificate.der).unwrap()), "{text}");
    }
}

#[tokio::test]
async fn standing_changes_once_and_revoking_is_for_good() {
    let room = Room::new();
    let store = room.open().await;
    let member = site("a");
    let set = |state| store.set_member_state(at(3), &member, state, suspended(&member));
    let unknown = set(MemberState::Suspended).await;
    assert!(matches!(unknown, Err(StateError::Unknown(_))), "{unknown:?}");
    enrol(&store, &member, "token").await;
    assert_eq!(set(MemberState::Suspended).await.unwrap(), StateChange::Changed);
    assert_eq!(set(MemberState::Suspended).await.unwrap(), StateChange::Unchanged);
    assert_eq!(state_of(&store, &member).await, MemberState::Suspended);
    enrol(&store, &member, "another token").await;
    assert_eq!(state_of(&store, &member).await, MemberState::Suspended, "a kit reinstates nobody");
    assert_eq!(set(MemberState::Active).await.unwrap(), StateChange::Changed);
    assert_eq!(set(MemberState::Revoked).await.unwrap(), StateChange::Changed);
    let dead = set(MemberState::Active).await;
    assert!(matches!(dead, Err(StateError::Revoked(_))), "{dead:?}");
    let fresh = enrol(&store, &member, "third token").await;
    assert_eq!(state_of(&store, &member).await, MemberState::Active);
    assert_eq!(store.members().await.unwrap()[0].serial_hex, fresh.serial_hex);
    let size = store.records(&Stream::Registry).await.unwrap().len();
    assert_eq!(size, 3 * 2 + 3, "three invited and enrolled, three changes");
}

#[tokio::test]
async fn the_first_operator_needs_no_invitation() {
    let room = Room::new();
    let store = room.open().await;
    let anna: Member = "operator/anna".parse().unwrap();
    let certificate = certificate("operator");
    let event = enrolled(&anna, &certificate);
    store.add_member(at(1), &anna, &certificate, event).await.unwrap();
    assert_eq!(state_of(&store, &anna).await, MemberState::Active);
    let taken = store.add_member(at(1), &site("a"), &certificate, invited(&anna)).await;
    assert!(taken.is_err(), "two members of one serial number");
    assert_eq!(store.head().await.unwrap().size, 1);
}

#[tokio::test]
async fn who_was_heard_is_shown_at_once_and_carried_by_the_next_transaction() {
    let room = Room::new();
    let store = room.open().await;
    let member = site("a");
    enrol(&store, &member, "token").await;
    store.touch_seen(&member, at(70));
    store.touch_seen(&member, at(60));
    store.touch_seen(&site("stranger"), at(60));
    assert_eq!(store.members().await.unwrap()[0].last_seen, Some(at(70)));
    store.commit(at(80), &run("a"), 0, &events(1, 0)).await.unwrap();
    store.touch_seen(&member, at(90));
    drop(store);
    let store = room.open().await;
    assert_eq!(store.members().await.unwrap()[0].last_seen, Some(at(70)));
}

/// A6b. Failed before: another kit of the same name brought a revoked member back.
#[tokio::test]
async fn a_revocation_voids_every_unused_invitation_of_that_name() {
    let room = Room::new();
    let store = room.open().await;
    let member = site("a");
    let spare = invite(&store, &member, "spare").await;
    let other = invite(&store, &site("b"), "of another").await;
    enrol(&store, &member, "used").await;
    let by = "operator/anna".to_owned();
    let revoked =
        RegistryEvent::Revoked { member: member.to_string(), reason: "left".to_owned(), by };
    store.set_member_state(at(3), &member, MemberState::Revoked, revoked).await.unwrap();
    let certificate = certificate("again");
    let event = enrolled(&member, &certificate);
    let again = store.enrol(at(4), spare, Digest::of(b"key 2"), &certificate, event).await;
    assert!(matches!(again, Err(EnrolError::UnknownToken)), "{again:?}");
    assert_eq!(state_of(&store, &member).await, MemberState::Revoked);
    let open = store.open_invitations(at(4)).await.unwrap();
    assert_eq!(open.iter().map(|i| i.token_digest).collect::<Vec<_>>(), [other]);
}

#[tokio::test]
async fn invitations_are_withdrawn_by_name_and_the_history_counts_them() {
    let room = Room::new();
    let store = room.open().await;
    let (member, by) = (site("a"), "operator/anna".parse().unwrap());
    let token = invite(&store, &member, "first").await;
    invite(&store, &member, "second").await;
    assert_eq!(store.withdraw_invitations(at(2), &member, &by).await.unwrap(), 2);
    assert_eq!(store.withdraw_invitations(at(2), &member, &by).await.unwrap(), 0);
    assert_eq!(store.open_invitations(at(2)).await.unwrap(), []);
    let certificate = certificate("first");
    let event = enrolled(&member, &certificate);
    let late = store.enrol(at(3), token, Digest::of(b"key"), &certificate, event).await;
    assert!(matches!(late, Err(EnrolError::UnknownToken)), "{late:?}");
    let records = store.records(&Stream::Registry).await.unwrap();
    let withdrawn = RegistryEvent::InvitationsWithdrawn {
        member: member.to_string(),
        count: 2,
        by: by.to_string(),
    };
    assert_eq!(records.last().unwrap().1.event, Event::Registry(withdrawn));
    assert_eq!(records.len(), 3, "nothing is written where nothing was open");
}
