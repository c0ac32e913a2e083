//! The manifest of a run, `run.toml`: everything a site agrees to, named by one digest.
//!
//! Two steps: [`RunManifest`] is the file as written, [`RunManifest::check`] refuses what cannot
//! mean a run. It travels and is logged as the canonical JSON of this struct; that JSON's digest
//! names the run's terms everywhere.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::adaptation::Adaptation;
use crate::architecture::Architecture;
use crate::bags::Bags;
use crate::contract::AdapterContract;
use crate::dataset::{DataContract, Interpolation};
use crate::digest::Digest;
use crate::head::Head;
use crate::name::{RunName, SiteName};
use crate::objective::{BATCH_MAX, Objective};
use crate::privacy::Privacy;
use crate::problems::Problems;
pub use crate::task::Task;
pub use crate::training::Training;

/// The only manifest schema this version reads.
pub const SCHEMA_VERSION: u32 = 1;
/// Largest manifest accepted from a file or a wire, bytes. It is logged whole, and an entry of a
/// C2SP log holds at most 65,535 bytes.
pub const MANIFEST_BYTES_MAX: usize = 48 * 1024;
/// Most sites asked in one round: their names, and the reasons of the missing, must fit one leaf.
pub const COHORT_MAX: usize = 256;
/// A payload above this deserves a word to the operator who starts the run, bytes.
pub const PAYLOAD_BYTES_LARGE: u64 = 64 << 20;
/// Largest adapter payload accepted from a manifest, bytes.
pub const PAYLOAD_BYTES_MAX: u64 = 4 << 30;

/// Keys whose values were refused by fewer rules once: a recorded manifest may hold such values.
const REFUSED_SINCE: [&str; 4] =
    [BACKBONE_DIGEST, "training.holdout", "data.cases_per_class_min", "rounds.void_max"];
/// The key of the backbone's digest.
const BACKBONE_DIGEST: &str = "backbone.digest";

/// A run as its operator declares it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunManifest {
    /// Must be [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The run's name, unique at the coordinator.
    pub name: RunName,
    /// What the sites do in each round.
    pub task: Task,
    /// The frozen backbone; required unless the task is a rehearsal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backbone: Option<Backbone>,
    /// The trained weights; required unless the task is a rehearsal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Adaptation>,
    /// What turns tokens into logits; a linear map when absent.
    #[serde(default, skip_serializing_if = "Head::is_default")]
    pub head: Head,
    /// How each site trains; required unless the task is a rehearsal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// What every site's images must be; anything, when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataContract>,
    /// How images are gathered under one label; each stands for itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bags: Option<Bags>,
    /// How many rounds, and how long one may take.
    pub rounds: Rounds,
    /// Who is asked; every active site when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohort: Option<Cohort>,
    /// When a round's deltas are enough.
    pub quorum: Quorum,
    /// How deltas become the next adapter.
    #[serde(default)]
    pub strategy: Strategy,
    /// Bounds on one site's part.
    #[serde(default)]
    pub limits: Limits,
    /// The members who may see what single sites send.
    #[serde(default, skip_serializing_if = "Privacy::is_default")]
    pub privacy: Privacy,
}

/// The frozen backbone: the file's digest and the shape it must have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backbone {
    /// SHA-256 of the safetensors file.
    pub digest: Digest,
    /// The shape it must have.
    pub architecture: Architecture,
    /// Per-channel mean subtracted from pixels in [0, 1].
    pub mean: Vec<f64>,
    /// Per-channel standard deviation divided by.
    pub std: Vec<f64>,
    /// How images are resized to the architecture's image size.
    #[serde(default, skip_serializing_if = "Interpolation::is_default")]
    pub interpolation: Interpolation,
    /// timm's `crop_pct`, of [`CROP_PCT`]: the shorter side of an image becomes `image_size /
    /// crop_pct` pixels and the backbone sees the middle. When absent, the whole image is stretched
    /// to the square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_pct: Option<f64>,
}

/// What [`Backbone::crop_pct`] may be.
pub const CROP_PCT: std::ops::RangeInclusive<f64> = 0.5..=1.0;

/// How many rounds, and how long one may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rounds {
    /// Published rounds asked for.
    pub count: u32,
    /// Hard cap on one round, seconds; a progressing site is waited for until then.
    pub round_deadline_s: u64,
    /// A site whose training step has not moved for this long is lost to the round, seconds.
    pub stall_timeout_s: u64,
    /// A site silent for this long is lost to the round until it is heard again, seconds.
    #[serde(default = "lease_s")]
    pub lease_s: u64,
    /// Rounds in a row that may end below quorum before the run fails.
    #[serde(default = "void_max")]
    pub void_max: u32,
    /// Time between a round below quorum and the next, seconds; twice as long after each further
    /// one in a row, up to [`VOID_PAUSE_MAX`].
    #[serde(default = "void_pause_s", skip_serializing_if = "is_void_pause_s")]
    pub void_pause_s: u64,
    /// A site that is asked and not heard in the round for this long is lost to it, seconds.
    #[serde(default = "answer_timeout_s", skip_serializing_if = "is_answer_timeout_s")]
    pub answer_timeout_s: u64,
}

/// Longest pause between rounds below quorum that doubling leads to.
pub const VOID_PAUSE_MAX: Duration = Duration::from_secs(3_600);

// Left out of the JSON where they are the default: manifests from before they were keys keep their
// digests.
fn void_pause_s() -> u64 {
    60
}

fn is_void_pause_s(value: &u64) -> bool {
    *value == void_pause_s()
}

fn answer_timeout_s() -> u64 {
    30
}

fn is_answer_timeout_s(value: &u64) -> bool {
    *value == answer_timeout_s()
}

fn void_max() -> u32 {
    2
}

fn lease_s() -> u64 {
    30
}

impl Rounds {
    /// [`Self::round_deadline_s`] as a duration.
    pub fn round_deadline(&self) -> Duration {
        Duration::from_secs(self.round_deadline_s)
    }

    /// [`Self::stall_timeout_s`] as a duration.
    pub fn stall_timeout(&self) -> Duration {
        Duration::from_secs(self.stall_timeout_s)
    }

    /// The pause after the last of `voids` rounds in a row below quorum.
    pub fn void_pause(&self, voids: u32) -> Duration {
        let first = Duration::from_secs(self.void_pause_s);
        let doubled = first.saturating_mul(1 << voids.saturating_sub(1).min(20));
        doubled.min(VOID_PAUSE_MAX.max(first))
    }

    /// [`Self::answer_timeout_s`] as a duration.
    pub fn answer_timeout(&self) -> Duration {
        Duration::from_secs(self.answer_timeout_s)
    }

    /// [`Self::lease_s`] as a duration.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_s)
    }
}

/// The sites asked, by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cohort {
    /// Asked when active; a name not enrolled yet joins when it is.
    pub sites: BTreeSet<SiteName>,
}

/// When a round's accepted deltas are enough to publish.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quorum {
    /// Accepted deltas needed.
    pub sites: u32,
    /// Share in (0, 1] of the cases that the cohort declared which the accepted deltas must hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_of_cases: Option<f64>,
}

/// How deltas become the next adapter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// Federated averaging (McMahan et al. 2017, arXiv:1602.05629): the mean of the deltas,
    /// weighted by training cases, added to the adapter.
    #[default]
    #[serde(rename = "fedavg")]
    FedAvg,
}

impl Strategy {
    /// The names of every strategy.
    pub const KINDS: [&str; 1] = ["fedavg"];

    /// The name in manifests, policies, tables and the history.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::FedAvg => "fedavg",
        }
    }
}

/// Bounds on one site's part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest L2 norm of one delta over all its tensors.
    #[serde(default = "delta_norm_max")]
    pub delta_norm_max: f64,
    /// Most training cases one site may declare.
    #[serde(default = "cases_max")]
    pub cases_max: u64,
    /// Largest share in (0, 1] of all used weights that one site's delta may have. Declared cases
    /// above it are used in part and not refused. When absent: no bound for one or two deltas, two
    /// thirds for three, and a half for more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share_max: Option<f64>,
}

fn delta_norm_max() -> f64 {
    1e3
}

fn cases_max() -> u64 {
    10_000_000
}

impl Default for Limits {
    fn default() -> Self {
        Self { delta_norm_max: delta_norm_max(), cases_max: cases_max(), share_max: None }
    }
}

/// A manifest that cannot mean a run.
#[derive(Debug, thiserror::Error)]
pub enum InvalidManifest {
    /// Not TOML, or a key missing, unknown or of the wrong type.
    #[error("{}", .0.to_string().trim_end())]
    Toml(#[from] toml::de::Error),
    /// Not the canonical JSON of a manifest.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Larger than [`MANIFEST_BYTES_MAX`].
    #[error("{0} bytes; a manifest has at most {MANIFEST_BYTES_MAX}")]
    TooLarge(usize),
    /// Values that make no sense, with their mends.
    #[error(transparent)]
    Values(#[from] Problems),
}

impl RunManifest {
    /// Reads and checks `run.toml`.
    pub fn from_toml(text: &str) -> Result<Self, InvalidManifest> {
        let manifest = Self::read_toml(text)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Reads `run.toml` without judging its values; [`Self::problems`] does.
    pub fn read_toml(text: &str) -> Result<Self, InvalidManifest> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(InvalidManifest::TooLarge(text.len()));
        }
        Ok(toml::from_str(text)?)
    }

    /// Reads and checks the canonical JSON that travels.
    pub fn from_json(bytes: &[u8]) -> Result<Self, InvalidManifest> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(InvalidManifest::TooLarge(bytes.len()));
        }
        let manifest: Self = serde_json::from_slice(bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The canonical JSON: fields in declaration order, no spaces.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is plain data")
    }

    /// The digest that names the run's terms.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.to_json())
    }

    /// The adapter contract the manifest implies; `None` before [`Self::check`] has passed.
    pub fn contract(&self) -> Option<AdapterContract> {
        if let Task::Rehearsal { payload_bytes } = self.task {
            return Some(AdapterContract::rehearsal(payload_bytes));
        }
        let backbone = self.backbone.as_ref()?;
        let adaptation = self.adapter.clone()?;
        let outputs = self.task.head_outputs();
        let shape = &backbone.architecture;
        if let Task::SelfSupervised { objective } = &self.task {
            let head = objective.head();
            let contract = AdapterContract::new(backbone.digest, shape, adaptation, head, outputs);
            return Some(contract.with_tensors(objective.tensors(shape)));
        }
        let head = self.head.clone();
        let mut more = self.task.head_tensors(shape.width);
        if let Some(bags) = &self.bags {
            more.extend(bags.tensors(head.input_width(shape)));
        }
        let contract =
            AdapterContract::new(backbone.digest, shape, adaptation, Some(head), outputs);
        Some(contract.with_tensors(more))
    }

    /// Refuses what cannot mean a run.
    pub fn check(&self) -> Result<(), InvalidManifest> {
        Ok(Problems::of(|found| *found = self.problems())?)
    }

    /// Refuses what no version has ever taken: a history may hold runs whose manifests
    /// [`Self::check`] refuses since.
    pub fn check_recorded(&self) -> Result<(), InvalidManifest> {
        Ok(Problems::of(|found| {
            *found = self.problems();
            found.retain(|problem| !REFUSED_SINCE.contains(&problem.key.as_str()));
        })?)
    }

    /// Every problem, in the order of the file's tables. What follows from another problem is
    /// left out.
    pub fn problems(&self) -> Problems {
        let mut found = Problems::default();
        found.require(self.schema_version == SCHEMA_VERSION, "schema_version", || {
            format!("{} is not supported; this version reads {SCHEMA_VERSION}", self.schema_version)
        });
        self.task.check(&mut found);
        if let Task::Rehearsal { .. } = self.task {
            self.check_rehearsal(&mut found);
        } else {
            self.check_model(&mut found);
        }
        if let Some(data) = &self.data {
            data.check(&mut found);
        }
        if let (Some(bags), false) = (&self.bags, matches!(self.task, Task::Rehearsal { .. })) {
            bags.check(&self.task, &mut found);
        }
        self.check_rounds(&mut found);
        self.check_payload(&mut found);
        found
    }

    fn check_rehearsal(&self, found: &mut Problems) {
        let modelless = self.backbone.is_none()
            && self.adapter.is_none()
            && self.head.is_default()
            && self.training.is_none()
            && self.data.is_none()
            && self.bags.is_none();
        found.require(modelless, "task.kind", || {
            "a rehearsal takes no [backbone], [adapter], [head], [training], [data] or [bags]; \
             remove them"
                .to_owned()
        });
    }

    fn check_model(&self, found: &mut Problems) {
        match &self.backbone {
            Some(backbone) => backbone.check(found),
            None => missing("backbone", found),
        }
        // What an adapter or a head may be follows from a shape that makes sense alone.
        let shape = self.backbone.as_ref().map(|backbone| &backbone.architecture);
        let shape = shape.filter(|_| !found.touch("backbone.architecture"));
        match &self.adapter {
            Some(adaptation) => adaptation.check(shape, found),
            None => missing("adapter", found),
        }
        self.head.check(found);
        if let Task::Segmentation { .. } = self.task {
            found.require(self.head.is_default(), "head", || {
                "a segmentation has its own head, task.decoder; remove the table [head]".to_owned()
            });
            let patches = shape.is_none_or(|shape| shape.features() == shape.width);
            found.require(patches, "backbone.architecture.pool", || {
                "a segmentation reads patch tokens alone; use `class_token` or `mean`".to_owned()
            });
        }
        match &self.training {
            Some(training) => training.check(&self.task, found),
            None => missing("training", found),
        }
        if let Task::SelfSupervised { objective } = &self.task {
            self.check_unlabelled(objective, shape, found);
        }
    }

    fn check_unlabelled(
        &self,
        objective: &Objective,
        shape: Option<&Architecture>,
        found: &mut Problems,
    ) {
        found.require(self.head.is_default(), "head", || {
            "a self_supervised task has its objective's own layers; remove the table [head]"
                .to_owned()
        });
        found.require(self.adapter != Some(Adaptation::HeadOnly), "adapter.kind", || {
            "under head_only a self_supervised task would train nothing that lasts; adapt the \
             backbone, for example with kind = \"lora\""
                .to_owned()
        });
        let augment = self.training.as_ref().and_then(|t| t.augment.as_ref());
        objective.check(shape, augment, found);
        let images = self.training.as_ref().map_or(1, |training| training.batch_size);
        found.require(images <= BATCH_MAX, "training.batch_size", || {
            format!("{images} is above {BATCH_MAX}, the most of a step without labels")
        });
    }

    /// The size of the adapter, once all that it follows from makes sense.
    fn check_payload(&self, found: &mut Problems) {
        let shapes = ["task", "backbone.architecture", "adapter", "head", "bags"];
        if shapes.iter().any(|table| found.touch(table)) {
            return;
        }
        let bytes = self.contract().map_or(0, |c| c.layout.payload_bytes());
        found.require(bytes <= PAYLOAD_BYTES_MAX, "adapter", || {
            format!("the adapter would have {bytes} bytes, above {PAYLOAD_BYTES_MAX}")
        });
    }

    fn check_rounds(&self, found: &mut Problems) {
        let rounds = &self.rounds;
        let seconds_max = 366 * 24 * 3600;
        let ranges = [
            ("rounds.count", u64::from(rounds.count), 1, 100_000),
            ("rounds.round_deadline_s", rounds.round_deadline_s, 1, seconds_max),
            ("rounds.stall_timeout_s", rounds.stall_timeout_s, 1, seconds_max),
            ("rounds.lease_s", rounds.lease_s, 1, seconds_max),
            ("rounds.void_max", u64::from(rounds.void_max), 0, 1_000),
            ("rounds.void_pause_s", rounds.void_pause_s, 0, seconds_max),
            ("rounds.answer_timeout_s", rounds.answer_timeout_s, 1, seconds_max),
            ("quorum.sites", u64::from(self.quorum.sites), 1, COHORT_MAX as u64),
            ("limits.cases_max", self.limits.cases_max, 1, 1 << 40),
        ];
        for (key, value, low, high) in ranges {
            found.require((low..=high).contains(&value), key, || {
                format!("{value} is not between {low} and {high}")
            });
        }
        if let Some(cohort) = &self.cohort {
            found.require(cohort.sites.len() <= COHORT_MAX, "cohort.sites", || {
                format!("{} sites; a round asks at most {COHORT_MAX}", cohort.sites.len())
            });
            found.require(cohort.sites.len() >= self.quorum.sites as usize, "quorum.sites", || {
                format!(
                    "{} is more than the {} sites of the cohort",
                    self.quorum.sites,
                    cohort.sites.len()
                )
            });
        }
        if let Some(share) = self.quorum.share_of_cases {
            found.require(share > 0.0 && share <= 1.0, "quorum.share_of_cases", || {
                format!("{share} is not above 0 and at most 1")
            });
        }
        if let Some(share) = self.limits.share_max {
            found.require(share > 0.0 && share <= 1.0, "limits.share_max", || {
                format!("{share} is not above 0 and at most 1")
            });
        }
        let norm = self.limits.delta_norm_max;
        found.require(norm.is_finite() && norm > 0.0, "limits.delta_norm_max", || {
            format!("{norm} is not above 0")
        });
    }
}

impl Backbone {
    fn check(&self, found: &mut Problems) {
        found.require(!self.digest.is_zero(), BACKBONE_DIGEST, || {
            "all zeros is the sample's and no file's; `tributary-client backbone show FILE` prints \
             a file's"
                .to_owned()
        });
        self.architecture.check(found);
        let channels = self.architecture.channels;
        for (key, values) in [("backbone.mean", &self.mean), ("backbone.std", &self.std)] {
            let fits = values.len() == channels && values.iter().all(|v| v.is_finite());
            found.require(fits, key, || format!("needs {channels} finite numbers, one a channel"));
        }
        found.require(self.std.iter().all(|v| *v > 0.0), "backbone.std", || {
            "must be above 0".to_owned()
        });
        let crop = self.crop_pct.is_none_or(|share| CROP_PCT.contains(&share));
        found.require(crop, "backbone.crop_pct", || {
            "must be 0.5 to 1; left out, images are stretched".to_owned()
        });
    }
}

fn missing(table: &str, found: &mut Problems) {
    found.add(table, format!("the table [{table}] is missing"));
}
