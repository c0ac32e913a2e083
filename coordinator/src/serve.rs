//! The composition root: opens what the service stands on, recovers, serves, and stops in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tower::layer::layer_fn;
use tracing_subscriber::filter::LevelFilter;
use tributary_proto::channel::{
    Acceptor, ServerIdentity, certified, server_builder, write_durably,
};
use tributary_proto::private;
use tributary_shared::digest::Digest;
use tributary_shared::outcome::{ExitCode, Failure, chain};

use crate::blobs::Blobs;
use crate::clock;
use crate::config::{CoordinatorConfig, Level, Log, LogFormat};
use crate::descriptors;
use crate::driver::{Driver, DriverError};
use crate::heads::Heads;
use crate::membership::{
    Authority, EXPIRY_WARNING, FOUNDER, OPERATOR, ServerCertificate, mismatch, server_identity,
};
use crate::recovery::{Place, RECOVERIES, check};
use crate::round::event::RegistryEvent;
use crate::round::record::{Event, Stream};
use crate::rpc::{Calls, Counted, Services, Turns};
use crate::space::Space;
use crate::store::{Certificate, CommitError, Store, StoreError};

/// How long calls in progress may take to end once the coordinator is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// The file in the directory that says where the coordinator listens now.
pub(crate) const ADDRESS: &str = "address";
/// Folders in the directory that hold nothing but what the program wrote.
const OWN_FOLDERS: [&str; 4] = ["blobs", "spool", OPERATOR, RECOVERIES];
/// Endings of the files that are one database.
const DATABASE_FILES: [&str; 4] = ["", "-wal", "-shm", ".lock"];

/// What `serve` says once, when everything is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// The consortium.
    pub consortium: String,
    /// Where it listens.
    pub bound: SocketAddr,
    /// What startup kits say.
    pub address: String,
}

/// Serves until told to stop (SIGTERM, SIGINT). SIGHUP reads the server's certificate again.
pub async fn serve(
    config: &CoordinatorConfig,
    ready: impl FnOnce(&Listening),
) -> Result<(), Failure> {
    // First: what the last process kept may be what this one needs to open its database.
    let space = Space::of(&[database_folder(config), &config.directory], config.reserve_bytes);
    let authority = Arc::new(Authority::load(&config.directory).map_err(|e| e.failure())?);
    tighten(config);
    let signer = Arc::new(authority.log_signer().map_err(|e| e.failure())?);
    let identity = workable_identity(config)?;
    let limits = descriptors::divide()?;
    let acceptor =
        Acceptor::new(&identity).map_err(|e| Failure::invalid("server_certificate", chain(&e)))?;
    let acceptor = acceptor.limited(limits);
    let heads = Heads::open(&config.directory, signer)
        .map_err(|e| check::unreadable_head(&config.directory, &e))?;
    let store = open_store(config).await?;
    check::refuse_older(&Place::of(config), &store, &heads).await?;
    found(&store, &authority, config).await?;
    let blobs = open_blobs(config)?;
    let signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let connections = acceptor.connections();
    let (rules, stopping) = ((config.pace, config.keeping), stop.clone());
    let driver = Driver::start(store.clone(), blobs, connections, space, rules, stopping)
        .await
        .map_err(|e| driver_failure(&e))?;
    let listener = TcpListener::bind(config.listen).await.map_err(|e| bind_failure(config, &e))?;
    let listening = listening(config, &authority, &listener)?;
    let address_file = config.directory.join(ADDRESS);
    // The file helps people and scripts; a full disk keeps no coordinator from serving.
    if let Err(error) = write_durably(&address_file, listening.bound.to_string().as_bytes(), 0o600)
    {
        tracing::error!(%error, "{} cannot be written", address_file.display());
    }

    remember_head(&store, &heads).await?;
    tokio::spawn(heads.clone().keep(stop.clone()));
    let announced = config.address.is_some().then(|| listening.address.clone());
    let address = listening.address.clone();
    let heads_of = heads.clone();
    let reused = Arc::default();
    let turns = Turns::new(config.upload_memory_bytes, u64::from(config.windows.stream));
    let running = driver.clone();
    let services =
        Services { driver, authority, heads: heads_of, address, announced, reused, turns };
    let calls = Calls::default();
    let incoming = acceptor.incoming(listener, stop.clone());
    let server = server_builder(config.windows)
        .layer(layer_fn(move |inner| Counted::new(inner, calls.clone())))
        .add_routes(services.routes())
        .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
    let told = CancellationToken::new();
    tokio::spawn(signals.obey(told.clone(), stop.clone(), acceptor, config.clone()));
    tracing::info!(address = %listening.bound, "listening on {}", listening.bound);
    if let Some(found) = mismatch(&listening.address, listening.bound) {
        tracing::warn!("{found}; is something in between that forwards?");
    }
    ready(&listening);

    tokio::select! {
        ended = server => ended.map_err(|e| Failure::new(ExitCode::Bug, "server", chain(&e)))?,
        () = drained(&stop) => tracing::warn!("some calls did not end in time; cut them off"),
    }
    // Best effort: the file only says where a running coordinator listens.
    let _ = std::fs::remove_file(&address_file);
    if let Err(error) = heads.write() {
        tracing::warn!(%error, "cannot remember the signed head");
    }
    store.close().await;
    if let Some(lost) = heads.lost() {
        return Err(check::older_than(&config.database, lost));
    }
    if told.is_cancelled() {
        return Ok(());
    }
    Err(stopped_itself(&running))
}

/// The failure of a driver that stopped without a signal to the process.
fn stopped_itself(driver: &Driver) -> Failure {
    if driver.is_superseded() {
        return driver_failure(&DriverError::Superseded);
    }
    let message = "the coordinator stopped itself; the end of its log says why";
    Failure::new(ExitCode::Bug, "stopped", message).hint("start it again")
}

/// Takes from other users of the machine what they could do with the coordinator's files: a hospital's
/// deltas are among them. A disk that says no to it does not stop the service.
fn tighten(config: &CoordinatorConfig) {
    let folder = config.directory.display();
    let database = DATABASE_FILES.map(|ending| {
        let mut path = config.database.clone().into_os_string();
        path.push(ending);
        private::tighten(Path::new(&path)).is_ok_and(|changed| changed)
    });
    let elsewhere = database.iter().filter(|changed| **changed).count();
    match private::tighten_folder(&config.directory, &OWN_FOLDERS).map(|open| open + elsewhere) {
        Ok(0) => {}
        Ok(open) => tracing::warn!(
            "{folder}: {open} files and folders were open to other users of this machine; now they are not"
        ),
        Err(error) => tracing::warn!(
            "{folder}: other users of this machine may read files of the coordinator: {error}"
        ),
    }
}

async fn drained(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

/// Signs the present head, so that there is a memory of it from the first start on.
async fn remember_head(store: &Store, heads: &Heads) -> Result<(), Failure> {
    let head = store.head().await.map_err(|e| store_failure(&e))?;
    // A full disk keeps no coordinator from serving; a head is given out only after it was written.
    if let Err(error) = heads.sign(head.size, head.root) {
        tracing::warn!(%error, "cannot remember the signed head");
    }
    Ok(())
}

/// Opens the database, creating it or bringing its schema up to date; an empty one is not begun
/// where there was a history.
pub async fn open_store(config: &CoordinatorConfig) -> Result<Store, Failure> {
    check::refuse_missing(&Place::of(config))?;
    Store::open(&config.database).await.map_err(|e| store_failure(&e))
}

/// The folder that the database's journal needs room in.
pub(crate) fn database_folder(config: &CoordinatorConfig) -> &Path {
    match config.database.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

fn open_blobs(config: &CoordinatorConfig) -> Result<Blobs, Failure> {
    let directory = &config.directory;
    Blobs::at(directory).map_err(|e| {
        Failure::invalid("blobs", format!("{}: {e}", directory.display()))
            .hint("is the directory there and writable, and has the disk room?")
    })
}

/// Writes what `init` decided into an empty history: the consortium and its first operator. Done
/// again after a crash in between, it goes on where it was.
async fn found(
    store: &Store,
    authority: &Authority,
    config: &CoordinatorConfig,
) -> Result<(), Failure> {
    let failed = |e: StoreError| store_failure(&e);
    let now = clock::now();
    if store.head().await.map_err(failed)?.size == 0 {
        let consortium = authority.consortium().to_string();
        let root = authority.root_fingerprint();
        let founded = Event::Registry(RegistryEvent::Founded { consortium, root });
        match store.commit(now, &Stream::Registry, 0, &[founded]).await {
            Ok(_) => {}
            Err(CommitError::Store(e)) => return Err(failed(e)),
            Err(CommitError::Stale { .. }) => {
                return Err(driver_failure(&DriverError::Superseded));
            }
        }
    }
    let founder = &authority.founder().peer.member;
    if store.members().await.map_err(failed)?.iter().any(|row| row.member == *founder) {
        return Ok(());
    }
    let file = config.directory.join(FOUNDER);
    let der = CertificateDer::from_pem_file(&file)
        .map_err(|e| Failure::invalid("authority", format!("{}: {e}", file.display())))?;
    let named = certified(&der)
        .map_err(|e| Failure::invalid("authority", format!("{}: {e}", file.display())))?;
    let certificate = Certificate {
        der: der.to_vec(),
        serial_hex: named.peer.serial_hex,
        expires: named.expires,
    };
    let event =
        RegistryEvent::Enrolled { member: founder.to_string(), certificate: Digest::of(&der) };
    store.add_member(now, founder, &certificate, event).await.map_err(failed)
}

fn listening(
    config: &CoordinatorConfig,
    authority: &Authority,
    listener: &TcpListener,
) -> Result<Listening, Failure> {
    let bound = listener.local_addr().map_err(|e| bind_failure(config, &e))?;
    let consortium = authority.consortium().to_string();
    Ok(Listening { consortium, bound, address: config.address_at(bound) })
}

fn bind_failure(config: &CoordinatorConfig, error: &std::io::Error) -> Failure {
    let message = format!("{}: listen: {}: {error}", config.file.display(), config.listen);
    Failure::invalid("listen", message)
        .hint("is another coordinator running, and does this machine have that address?")
}

fn store_failure(error: &StoreError) -> Failure {
    Failure::invalid("database", chain(error))
}

fn driver_failure(error: &DriverError) -> Failure {
    if let DriverError::Store(error) = error {
        return store_failure(error);
    }
    if matches!(error, DriverError::Superseded) {
        return Failure::refused("superseded", error.to_string())
            .hint("one database has one coordinator; stop the other and start this one again");
    }
    Failure::invalid("recovery", chain(error))
        .hint("nothing was changed; restore the directory from a backup")
}

/// What the system may tell a running coordinator.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Before recovery, so that a signal during it is not lost.
    fn listen() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| Failure::invalid("signals", e.to_string()));
        // A file that outgrows the process's limit is an error like a full disk, not its end.
        drop(on(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
        })
    }

    /// Returns, having set `told` and then `stop`, when the process is told to stop.
    async fn obey(
        mut self,
        told: CancellationToken,
        stop: CancellationToken,
        acceptor: Acceptor,
        config: CoordinatorConfig,
    ) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.hangup.recv() => reload(&acceptor, &config),
            }
        }
        tracing::info!("stopping");
        told.cancel();
        stop.cancel();
    }
}

/// A certificate that cannot be used leaves the present one in place.
fn reload(acceptor: &Acceptor, config: &CoordinatorConfig) {
    let reloaded = workable_identity(config)
        .map_err(|e| e.to_string())
        .and_then(|identity| acceptor.reload(&identity).map_err(|e| chain(&e)));
    match reloaded {
        Ok(()) => tracing::info!("the server's certificate is read again"),
        Err(error) => tracing::error!(%error, "the server's certificate stays: {error}"),
    }
}

/// The server's certificate and key, when members that are told `address` can connect with them.
fn workable_identity(config: &CoordinatorConfig) -> Result<ServerIdentity, Failure> {
    let certificate = ServerCertificate::load(&config.directory).map_err(|e| e.failure())?;
    let now = clock::now();
    certificate.check(&config.address_expected(), now).map_err(|e| e.failure(&config.file))?;
    if certificate.until().since(now) < EXPIRY_WARNING {
        let until = certificate.until();
        tracing::warn!("the server's certificate ends at {until}; renew it: renew-server");
    }
    server_identity(&config.directory).map_err(|e| e.failure())
}

/// Begins the process's log, on standard error.
pub fn log(log: Log) {
    let level = match log.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        // A log that nobody reads any more must not end the service.
        .log_internal_errors(false)
        .with_ansi(ansi);
    // A log that has begun already stays: only tests begin it twice.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
