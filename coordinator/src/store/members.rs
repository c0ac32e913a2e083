//! Who may take part: invitations and members. Each change is an event of the registry, in the
//! same transaction; tokens, keys and certificates themselves stay out of the history.

use std::collections::BTreeMap;

use sqlx::{FromRow, SqliteConnection};
use tributary_proto::channel::Member;
use tributary_shared::digest::Digest;
use tributary_shared::timestamp::Timestamp;

use super::append::advance_registry;
use super::read::digest;
use super::{Store, StoreError};
use crate::round::event::RegistryEvent;
use crate::round::record::{Event, Stream};

/// An invitation as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Digest of the one-time token.
    pub token_digest: Digest,
    /// Who is invited.
    pub member: Member,
    /// When the token expires.
    pub expires: Timestamp,
    /// Digest of the public key that used the token, and the certificate it got, DER.
    pub used: Option<(Digest, Vec<u8>)>,
}

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate.
    pub der: Vec<u8>,
    /// Its serial number, lower-case hex.
    pub serial_hex: String,
    /// When it expires.
    pub expires: Timestamp,
}

/// Whether a member's certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// May take part.
    Active,
    /// May not until reinstated.
    Suspended,
    /// Never again with this certificate.
    Revoked,
}

impl MemberState {
    /// The name in the database and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Revoked => "revoked",
        }
    }
}

/// An enrolled member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRow {
    /// Who.
    pub member: Member,
    /// Whether its certificate is good.
    pub state: MemberState,
    /// The serial number of its one good certificate, lower-case hex.
    pub serial_hex: String,
    /// That certificate, DER.
    pub certificate: Vec<u8>,
    /// When it expires.
    pub expires: Timestamp,
    /// When the member was last heard; approximate after a restart.
    pub last_seen: Option<Timestamp>,
}

/// Why a token gave no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// No invitation has this token.
    #[error("no invitation has this token; ask the operator for a new kit")]
    UnknownToken,
    /// The token is too old.
    #[error("the invitation expired at {0}; ask the operator for a new kit")]
    Expired(Timestamp),
    /// Another key has used the token.
    #[error("the invitation was used already, by another key; ask the operator for a new kit")]
    Used,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What came of changing a member's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateChange {
    /// It is changed and in the history.
    Changed,
    /// It was so already; nothing was written.
    Unchanged,
}

/// Why a member's state was not changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No member of that name is enrolled.
    #[error("no member `{0}` is enrolled")]
    Unknown(Member),
    /// Its certificate is dead for good.
    #[error("{0} is revoked for good; invite it anew")]
    Revoked(Member),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Stores an unused invitation.
    pub async fn invite(
        &self,
        at: Timestamp,
        invitation: &Invitation,
        event: RegistryEvent,
    ) -> Result<(), StoreError> {
        let invitation = invitation.clone();
        self.write("store an invitation", move |store, tx| {
            Box::pin(async move {
                let seq = advance_registry(&mut tx.connection).await?;
                insert_invitation(&mut tx.connection, &invitation).await?;
                store.append(tx, at, &Stream::Registry, seq, vec![Event::Registry(event)]).await?;
                Ok(Ok(()))
            })
        })
        .await
    }

    /// Uses an invitation's token for the holder of a key. The same key gets the certificate that
    /// it got the first time; the answer is the certificate that counts, DER.
    pub async fn enrol(
        &self,
        at: Timestamp,
        token_digest: Digest,
        key_digest: Digest,
        certificate: &Certificate,
        event: RegistryEvent,
    ) -> Result<Vec<u8>, EnrolError> {
        let certificate = certificate.clone();
        self.write("enrol", move |store, tx| {
            Box::pin(async move {
                let connection = &mut tx.connection;
                let claimed =
                    claim(connection, at, token_digest, key_digest, &certificate.der).await?;
                let Some(member) = claimed else {
                    return already_used(connection, token_digest, key_digest).await;
                };
                upsert_member(connection, &member, &certificate).await?;
                let seq = advance_registry(connection).await?;
                store.append(tx, at, &Stream::Registry, seq, vec![Event::Registry(event)]).await?;
                Ok(Ok(certificate.der))
            })
        })
        .await
    }

    /// Stores a certificate that was issued without an invitation: the first operator's.
    pub async fn add_member(
        &self,
        at: Timestamp,
        member: &Member,
        certificate: &Certificate,
        event: RegistryEvent,
    ) -> Result<(), StoreError> {
        let (member, certificate) = (member.to_string(), certificate.clone());
        self.write("enrol", move |store, tx| {
            Box::pin(async move {
                let seq = advance_registry(&mut tx.connection).await?;
                upsert_member(&mut tx.connection, &member, &certificate).await?;
                store.append(tx, at, &Stream::Registry, seq, vec![Event::Registry(event)]).await?;
                Ok(Ok(()))
            })
        })
        .await
    }

    /// Suspends, reinstates or revokes a member.
    pub async fn set_member_state(
        &self,
        at: Timestamp,
        member: &Member,
        state: MemberState,
        event: RegistryEvent,
    ) -> Result<StateChange, StateError> {
        let member = member.clone();
        self.write("change a member", move |store, tx| {
            Box::pin(async move {
                if state == MemberState::Revoked {
                    // Also where it is revoked already, or was only invited.
                    withdraw(&mut tx.connection, &member).await?;
                }
                if !put_state(&mut tx.connection, &member, state).await? {
                    return unchanged(&mut tx.connection, member, state).await;
                }
                let seq = advance_registry(&mut tx.connection).await?;
                store.append(tx, at, &Stream::Registry, seq, vec![Event::Registry(event)]).await?;
                Ok(Ok(StateChange::Changed))
            })
        })
        .await
    }

    /// Withdraws every unused invitation of `member`; says how many there were.
    pub async fn withdraw_invitations(
        &self,
        at: Timestamp,
        member: &Member,
        by: &Member,
    ) -> Result<u32, StoreError> {
        let (member, by) = (member.clone(), by.to_string());
        self.write("withdraw invitations", move |store, tx| {
            Box::pin(async move {
                let count = withdraw(&mut tx.connection, &member).await?;
                if count == 0 {
                    return Ok(Ok(0));
                }
                let seq = advance_registry(&mut tx.connection).await?;
                let member = member.to_string();
                let event = RegistryEvent::InvitationsWithdrawn { member, count, by };
                store.append(tx, at, &Stream::Registry, seq, vec![Event::Registry(event)]).await?;
                Ok(Ok(count))
            })
        })
        .await
    }

    /// Makes an event durable that changes no member.
    pub async fn record(&self, at: Timestamp, event: RegistryEvent) -> Result<(), StoreError> {
        self.write("record a check", move |store, tx| {
            Box::pin(async move {
                let seq = advance_registry(&mut tx.connection).await?;
                store.append(tx, at, &Stream::Registry, seq, vec![Event::Registry(event)]).await?;
                Ok(Ok(()))
            })
        })
        .await
    }

    /// The invitation with this token.
    pub async fn invitation(&self, token_digest: Digest) -> Result<Option<Invitation>, StoreError> {
        let row: Option<InvitationColumns> =
            sqlx::query_as("SELECT * FROM invitation WHERE token_digest = $1")
                .bind(&token_digest.as_bytes()[..])
                .fetch_optional(&self.0.readers)
                .await
                .map_err(StoreError::sql("read an invitation"))?;
        row.map(InvitationColumns::into_invitation).transpose()
    }

    /// Every invitation that can still be used at `now`.
    pub async fn open_invitations(&self, now: Timestamp) -> Result<Vec<Invitation>, StoreError> {
        let rows: Vec<InvitationColumns> = sqlx::query_as(
            "SELECT * FROM invitation WHERE key_digest IS NULL AND expires > $1
             ORDER BY member, expires",
        )
        .bind(now.as_millis())
        .fetch_all(&self.0.readers)
        .await
        .map_err(StoreError::sql("read the invitations"))?;
        rows.into_iter().map(InvitationColumns::into_invitation).collect()
    }

    /// Everybody who has ever enrolled, by role and name.
    pub async fn members(&self) -> Result<Vec<MemberRow>, StoreError> {
        let rows: Vec<MemberColumns> = sqlx::query_as("SELECT * FROM member ORDER BY member")
            .fetch_all(&self.0.readers)
            .await
            .map_err(StoreError::sql("read the members"))?;
        let seen = self.seen().clone();
        rows.into_iter()
            .map(|row| {
                let mut row = row.into_row()?;
                row.last_seen = row.last_seen.max(seen.get(&row.member).copied());
                Ok(row)
            })
            .collect()
    }

    /// Notes that `member` was heard. Costs no transaction: the next one of any kind carries it.
    pub fn touch_seen(&self, member: &Member, at: Timestamp) {
        let mut seen = self.seen();
        match seen.get_mut(member) {
            Some(last) => *last = at.max(*last),
            None => {
                seen.insert(member.clone(), at);
            }
        }
    }

    pub(super) async fn write_seen(
        &self,
        tx: &mut SqliteConnection,
    ) -> Result<BTreeMap<Member, Timestamp>, StoreError> {
        let seen = self.seen().clone();
        for (member, at) in &seen {
            sqlx::query("UPDATE member SET last_seen = $2 WHERE member = $1")
                .bind(member.to_string())
                .bind(at.as_millis())
                .execute(&mut *tx)
                .await
                .map_err(StoreError::sql("note who was heard"))?;
        }
        Ok(seen)
    }

    /// Drops what a transaction has carried, unless it was touched again meanwhile.
    pub(super) fn forget_seen(&self, written: BTreeMap<Member, Timestamp>) {
        self.seen().retain(|member, at| written.get(member) != Some(at));
    }
}

async fn insert_invitation(
    tx: &mut SqliteConnection,
    invitation: &Invitation,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO invitation (token_digest, member, expires) VALUES ($1, $2, $3)")
        .bind(&invitation.token_digest.as_bytes()[..])
        .bind(invitation.member.to_string())
        .bind(invitation.expires.as_millis())
        .execute(tx)
        .await
        .map_err(StoreError::sql("store an invitation"))?;
    Ok(())
}

/// Takes up an unused invitation for a key; the member it invites, if there is one.
async fn claim(
    tx: &mut SqliteConnection,
    at: Timestamp,
    token_digest: Digest,
    key_digest: Digest,
    certificate: &[u8],
) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar(
        "UPDATE invitation SET key_digest = $2, certificate = $3
         WHERE token_digest = $1 AND key_digest IS NULL AND expires > $4
         RETURNING member",
    )
    .bind(&token_digest.as_bytes()[..])
    .bind(&key_digest.as_bytes()[..])
    .bind(certificate)
    .bind(at.as_millis())
    .fetch_optional(tx)
    .await
    .map_err(StoreError::sql("enrol"))
}

async fn upsert_member(
    tx: &mut SqliteConnection,
    member: &str,
    certificate: &Certificate,
) -> Result<(), StoreError> {
    // A new invitation brings a revoked member back; a suspended one only its reinstatement.
    sqlx::query(
        "INSERT INTO member (member, state, serial, certificate, expires)
         VALUES ($1, 'active', $2, $3, $4)
         ON CONFLICT (member) DO UPDATE SET
             state = CASE state WHEN 'suspended' THEN 'suspended' ELSE 'active' END,
             serial = excluded.serial,
             certificate = excluded.certificate,
             expires = excluded.expires",
    )
    .bind(member)
    .bind(&certificate.serial_hex)
    .bind(&certificate.der[..])
    .bind(certificate.expires.as_millis())
    .execute(tx)
    .await
    .map_err(StoreError::sql("enrol"))?;
    Ok(())
}

/// Why a token could not be claimed, or the certificate that the same key got for it before.
async fn already_used(
    tx: &mut SqliteConnection,
    token_digest: Digest,
    key_digest: Digest,
) -> Result<Result<Vec<u8>, EnrolError>, StoreError> {
    let row: Option<InvitationColumns> =
        sqlx::query_as("SELECT * FROM invitation WHERE token_digest = $1")
            .bind(&token_digest.as_bytes()[..])
            .fetch_optional(tx)
            .await
            .map_err(StoreError::sql("enrol"))?;
    let Some(row) = row else { return Ok(Err(EnrolError::UnknownToken)) };
    let invitation = row.into_invitation()?;
    Ok(match invitation.used {
        Some((key, certificate)) if key == key_digest => Ok(certificate),
        Some(_) => Err(EnrolError::Used),
        None => Err(EnrolError::Expired(invitation.expires)),
    })
}

/// Deletes the unused invitations of `member`; gives their number.
async fn withdraw(tx: &mut SqliteConnection, member: &Member) -> Result<u32, StoreError> {
    let done = sqlx::query("DELETE FROM invitation WHERE member = $1 AND key_digest IS NULL")
        .bind(member.to_string())
        .execute(tx)
        .await
        .map_err(StoreError::sql("withdraw invitations"))?;
    Ok(u32::try_from(done.rows_affected()).unwrap_or(u32::MAX))
}

/// Puts a member into a state, unless it is there or is revoked; says whether it was put.
async fn put_state(
    tx: &mut SqliteConnection,
    member: &Member,
    state: MemberState,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "UPDATE member SET state = $2
         WHERE member = $1 AND state <> $2 AND state <> 'revoked'",
    )
    .bind(member.to_string())
    .bind(state.as_str())
    .execute(tx)
    .await
    .map_err(StoreError::sql("change a member"))?;
    Ok(done.rows_affected() > 0)
}

async fn unchanged(
    tx: &mut SqliteConnection,
    member: Member,
    wanted: MemberState,
) -> Result<Result<StateChange, StateError>, StoreError> {
    let state: Option<String> = sqlx::query_scalar("SELECT state FROM member WHERE member = $1")
        .bind(member.to_string())
        .fetch_optional(tx)
        .await
        .map_err(StoreError::sql("change a member"))?;
    Ok(match state {
        None => Err(StateError::Unknown(member)),
        Some(state) if state == wanted.as_str() => Ok(StateChange::Unchanged),
        Some(_) => Err(StateError::Revoked(member)),
    })
}

#[derive(FromRow)]
struct InvitationColumns {
    token_digest: Vec<u8>,
    member: String,
    expires: i64,
    key_digest: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
}

impl InvitationColumns {
    fn into_invitation(self) -> Result<Invitation, StoreError> {
        let what = || format!("invitation of {}", self.member);
        let used = match (self.key_digest, self.certificate) {
            (Some(key), Some(certificate)) => Some((digest(&key, what)?, certificate)),
            (None | Some(_), None | Some(_)) => None,
        };
        Ok(Invitation {
            token_digest: digest(&self.token_digest, what)?,
            member: member(&self.member)?,
            expires: Timestamp::from_millis(self.expires),
            used,
        })
    }
}

#[derive(FromRow)]
struct MemberColumns {
    member: String,
    state: String,
    serial: String,
    certificate: Vec<u8>,
    expires: i64,
    last_seen: Option<i64>,
}

impl MemberColumns {
    fn into_row(self) -> Result<MemberRow, StoreError> {
        let state = match self.state.as_str() {
            "active" => MemberState::Active,
            "suspended" => MemberState::Suspended,
            "revoked" => MemberState::Revoked,
            other => return Err(StoreError::Corrupt(format!("member state `{other}`"))),
        };
        Ok(MemberRow {
            member: member(&self.member)?,
            state,
            serial_hex: self.serial,
            certificate: self.certificate,
            expires: Timestamp::from_millis(self.expires),
            last_seen: self.last_seen.map(Timestamp::from_millis),
        })
    }
}

fn member(text: &str) -> Result<Member, StoreError> {
    text.parse().map_err(|_| StoreError::Corrupt(format!("member `{text}`")))
}
