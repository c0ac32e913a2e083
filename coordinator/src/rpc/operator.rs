//! What an operator calls, and the reading half of it for auditors.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};
use tributary_proto::channel::{Member, Role, require};
use tributary_proto::v1::{self, operator_server::Operator};
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::text::{REASON_CHARS_MAX, printable_start};

use super::{Services, checks, export, history, parse, rows, status};
use crate::clock;
use crate::driver::DriverError;
use crate::round::event::RegistryEvent;
use crate::round::{Command, Tally};
use crate::store::MemberState;

/// The service behind an operator's or auditor's certificate.
pub struct OperatorService(pub(super) Services);

impl OperatorService {
    /// The service over `services`.
    pub fn new(services: Services) -> Self {
        Self(services)
    }

    /// Every run, the newest first.
    async fn run_rows(&self) -> Vec<v1::RunRow> {
        let mut runs = Vec::new();
        for run in self.0.driver.runs().await {
            let trouble = run.trouble();
            runs.push(run.read(|run| rows::run(run, trouble)));
        }
        self.name_shortage(&mut runs);
        runs.sort_by_key(|row| std::cmp::Reverse(row.started_ms));
        runs
    }

    /// Says of runs that go on that the disk is short, and of those that wait that they wait for it.
    fn name_shortage(&self, runs: &mut [v1::RunRow]) {
        let Err(shortage) = self.0.driver.space().check(clock::now()) else { return };
        for run in runs.iter_mut().filter(|run| run.ended_ms == 0) {
            if run.state == "waiting" {
                run.detail = "the next round waits for room on the coordinator's disk".to_owned();
            }
            if run.trouble.is_empty() {
                run.trouble = shortage.to_string();
            }
        }
    }

    async fn change_state(
        &self,
        by: &Member,
        member: Member,
        state: MemberState,
        reason: String,
    ) -> Result<(), Status> {
        let driver = &self.0.driver;
        let (name, by) = (member.to_string(), by.to_string());
        let event = match state {
            MemberState::Active => RegistryEvent::Reinstated { member: name, by },
            MemberState::Suspended => RegistryEvent::Suspended { member: name, reason, by },
            MemberState::Revoked => RegistryEvent::Revoked { member: name, reason, by },
        };
        driver.set_member_state(&member, state, event).await.map_err(status)
    }
}

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        let driver = &self.0.driver;
        Ok(Response::new(v1::StatusReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: driver.started().as_millis(),
            disk: Some(rows::disk(&driver.room().await)),
            sites: rows::troubles(driver.presence().troubles(clock::now())),
            runs: self.run_rows().await,
        }))
    }

    async fn invite(
        &self,
        request: Request<v1::InviteRequest>,
    ) -> Result<Response<v1::InviteReply>, Status> {
        let by = require(&request, &[Role::Operator])?.member.clone();
        let request = request.into_inner();
        let member = Member {
            role: parse("role", &request.role)?,
            name: parse::<SiteName>("name", &request.name)?,
        };
        let kit = self.0.invite(&by, member, request.valid_s, request.replace).await?;
        Ok(Response::new(v1::InviteReply { kit }))
    }

    async fn list_sites(
        &self,
        _: Request<v1::ListSitesRequest>,
    ) -> Result<Response<v1::ListSitesReply>, Status> {
        let driver = &self.0.driver;
        let fault = |e| status(DriverError::Store(e));
        let members = driver.store().members().await.map_err(fault)?;
        let invited = driver.store().open_invitations(clock::now()).await.map_err(fault)?;
        let mut tally = Tally::default();
        for run in driver.runs().await {
            run.read(|run| tally.count(run));
        }
        let word = |site: &SiteName| driver.presence().word(site, clock::now());
        let sites = rows::sites(&members, &invited, &tally, word);
        Ok(Response::new(v1::ListSitesReply { sites }))
    }

    async fn list_persons(
        &self,
        request: Request<v1::ListPersonsRequest>,
    ) -> Result<Response<v1::ListPersonsReply>, Status> {
        let role = parse("role", &request.into_inner().role)?;
        let driver = &self.0.driver;
        let fault = |e| status(DriverError::Store(e));
        let members = driver.store().members().await.map_err(fault)?;
        let invited = driver.store().open_invitations(clock::now()).await.map_err(fault)?;
        let persons = rows::persons(role, &members, &invited);
        Ok(Response::new(v1::ListPersonsReply { persons }))
    }

    async fn withdraw_invitations(
        &self,
        request: Request<v1::WithdrawInvitationsRequest>,
    ) -> Result<Response<v1::WithdrawInvitationsReply>, Status> {
        let by = require(&request, &[Role::Operator])?.member.clone();
        let v1::WithdrawInvitationsRequest { role, name } = request.into_inner();
        let member = Member { role: parse("role", &role)?, name: parse("name", &name)? };
        let store = self.0.driver.store();
        let withdrawn = store.withdraw_invitations(clock::now(), &member, &by).await;
        let withdrawn = withdrawn.map_err(|e| status(DriverError::Store(e)))?;
        tracing::info!(%member, withdrawn, "invitations withdrawn");
        Ok(Response::new(v1::WithdrawInvitationsReply { withdrawn }))
    }

    async fn set_member_state(
        &self,
        request: Request<v1::SetMemberStateRequest>,
    ) -> Result<Response<v1::SetMemberStateReply>, Status> {
        let by = require(&request, &[Role::Operator])?.member.clone();
        let request = request.into_inner();
        let member =
            Member { role: parse("role", &request.role)?, name: parse("name", &request.name)? };
        let state = member_state(&request.state)?;
        if member == by && state != MemberState::Active {
            // So that there always is an operator left.
            let text = "an operator cannot suspend or revoke itself; another operator can";
            return Err(Status::failed_precondition(text));
        }
        self.change_state(&by, member, state, shortened(&request.reason)).await?;
        Ok(Response::new(v1::SetMemberStateReply {}))
    }

    async fn check_run(
        &self,
        request: Request<v1::CheckRunRequest>,
    ) -> Result<Response<v1::CheckRunReply>, Status> {
        let by = require(&request, &[Role::Operator])?.member.clone();
        let v1::CheckRunRequest { manifest_toml, wait_ms } = request.into_inner();
        let manifest = read_manifest(&manifest_toml)?;
        let checked = self.0.driver.check(&manifest, &by, checks::wait(wait_ms)).await;
        let report = Some(checks::report(&checked.map_err(status)?));
        Ok(Response::new(v1::CheckRunReply { report }))
    }

    async fn start_run(
        &self,
        request: Request<v1::StartRunRequest>,
    ) -> Result<Response<v1::StartRunReply>, Status> {
        let by = require(&request, &[Role::Operator])?.member.clone();
        let v1::StartRunRequest { manifest_toml, anyway, wait_ms } = request.into_inner();
        let manifest = read_manifest(&manifest_toml)?;
        let driver = &self.0.driver;
        let report = match anyway {
            true => driver.look_over(&manifest).await,
            false => driver.check(&manifest, &by, checks::wait(wait_ms)).await,
        };
        let report = report.map_err(status)?;
        let wire = Some(checks::report(&report));
        if !(report.is_clean() || anyway && report.problems.is_empty()) {
            let refused = v1::StartRunReply { report: wire, ..v1::StartRunReply::default() };
            return Ok(Response::new(refused));
        }
        let reply = v1::StartRunReply {
            run: manifest.name.to_string(),
            manifest_digest: manifest.digest().as_bytes().to_vec().into(),
            report: wire,
            started: true,
        };
        driver.start_run(manifest, &by).await.map_err(status)?;
        Ok(Response::new(reply))
    }

    async fn stop_run(
        &self,
        request: Request<v1::StopRunRequest>,
    ) -> Result<Response<v1::StopRunReply>, Status> {
        let by = require(&request, &[Role::Operator])?.member.clone();
        let request = request.into_inner();
        let run = self.0.driver.run(&parse("run", &request.run)?).await.map_err(status)?;
        let reason = match shortened(&request.reason) {
            reason if reason.is_empty() => format!("stopped by {by}"),
            reason => format!("stopped by {by}: {reason}"),
        };
        run.command(&self.0.driver, Command::Stop { reason }).await.map_err(status)?;
        Ok(Response::new(v1::StopRunReply {}))
    }

    async fn resume_run(
        &self,
        request: Request<v1::ResumeRunRequest>,
    ) -> Result<Response<v1::ResumeRunReply>, Status> {
        let by = require(&request, &[Role::Operator])?.member.to_string();
        let request = request.into_inner();
        let run = self.0.driver.run(&parse("run", &request.run)?).await.map_err(status)?;
        let command = Command::Resume { by, reason: shortened(&request.reason) };
        run.command(&self.0.driver, command).await.map_err(status)?;
        Ok(Response::new(v1::ResumeRunReply {}))
    }

    async fn list_runs(
        &self,
        _: Request<v1::ListRunsRequest>,
    ) -> Result<Response<v1::ListRunsReply>, Status> {
        Ok(Response::new(v1::ListRunsReply { runs: self.run_rows().await }))
    }

    async fn show_run(
        &self,
        request: Request<v1::ShowRunRequest>,
    ) -> Result<Response<v1::ShowRunReply>, Status> {
        let name: RunName = parse("run", &request.into_inner().run)?;
        let driver = &self.0.driver;
        let snapshot = driver.run(&name).await.map_err(status)?.snapshot();
        let round = snapshot.run.round();
        let received = |site: &SiteName| driver.uploads().received(site, &name, round);
        let word = |site: &SiteName| driver.presence().word(site, clock::now());
        let mut shown = rows::show(&snapshot, received, word);
        self.name_shortage(shown.run.as_mut_slice());
        Ok(Response::new(shown))
    }

    type LogStream = Boxed<v1::LogEntry>;

    async fn log(
        &self,
        request: Request<v1::LogRequest>,
    ) -> Result<Response<Self::LogStream>, Status> {
        let request = request.into_inner();
        let driver = &self.0.driver;
        let run = match request.run.as_str() {
            "" => None,
            name => {
                let name: RunName = parse("run", name)?;
                driver.run(&name).await.map_err(status)?;
                Some(name)
            }
        };
        let entries = history::entries(driver, run, request.from_leaf, request.follow);
        Ok(Response::new(Box::pin(entries)))
    }

    type PullStream = Boxed<v1::PullChunk>;

    async fn pull(
        &self,
        request: Request<v1::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let request = request.into_inner();
        let driver = &self.0.driver;
        let run = driver.run(&parse("run", &request.run)?).await.map_err(status)?;
        let snapshot = run.snapshot();
        let adapters = snapshot.run.adapters();
        let newest = u32::try_from(adapters.len() - 1).unwrap_or(u32::MAX);
        let version = request.version.unwrap_or(newest);
        let digest = *adapters.get(version as usize).ok_or_else(|| {
            Status::not_found(format!(
                "run {} has versions 0 to {newest}, not {version}",
                run.name()
            ))
        })?;
        let io = DriverError::io("reading the adapter");
        let bytes = driver.blobs().size(digest).await.map_err(io).map_err(status)?;
        let subject = v1::PullSubject {
            version,
            digest: digest.as_bytes().to_vec().into(),
            bytes,
            manifest_json: snapshot.run.manifest().to_json().into(),
        };
        let first = v1::PullChunk { subject: Some(subject), data: bytes::Bytes::new() };
        let rest = history::blob_pieces(driver.blobs(), digest, 0);
        let rest = rest.map(|piece| piece.map(|data| v1::PullChunk { subject: None, data }));
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(first)).chain(rest))))
    }

    async fn checkpoint(
        &self,
        request: Request<v1::CheckpointRequest>,
    ) -> Result<Response<v1::CheckpointReply>, Status> {
        let old_size = request.into_inner().old_size;
        let reply = history::checkpoint(&self.0.driver, &self.0.heads, old_size).await?;
        Ok(Response::new(reply))
    }

    type ExportStream = Boxed<v1::Chunk>;

    async fn export(
        &self,
        request: Request<v1::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let role = require(&request, &[Role::Operator, Role::Auditor])?.member.role;
        let with_tensors = request.into_inner().with_tensors;
        let stream = export::export(&self.0.driver, &self.0.heads, with_tensors, role).await?;
        Ok(Response::new(Box::pin(stream.map(|piece| piece.map(|data| v1::Chunk { data })))))
    }
}

/// Reads a manifest, whose values may make no sense yet.
pub(super) fn read_manifest(text: &str) -> Result<RunManifest, Status> {
    RunManifest::read_toml(text).map_err(|e| Status::invalid_argument(format!("manifest: {e}")))
}

fn shortened(reason: &str) -> String {
    printable_start(reason, REASON_CHARS_MAX)
}

/// Reads the state that a member is put in.
pub(super) fn member_state(text: &str) -> Result<MemberState, Status> {
    match text {
        "active" => Ok(MemberState::Active),
        "suspended" => Ok(MemberState::Suspended),
        "revoked" => Ok(MemberState::Revoked),
        other => {
            let text = format!("state: `{other}` is none of active, suspended, revoked");
            Err(Status::invalid_argument(text))
        }
    }
}
