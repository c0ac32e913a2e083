//! The text of a new `run.toml`: every table with a word on what to change in it.

use serde::Serialize;
use toml::Value;
use tributary_shared::manifest::Backbone;
use tributary_shared::name::{RunName, SiteName};

use super::Kind;

/// Parts of a new manifest.
pub(super) struct Parts {
    /// The run's name.
    pub(super) name: RunName,
    /// The kind of task.
    pub(super) kind: Kind,
    /// The names of the classes.
    pub(super) classes: Vec<String>,
    /// The backbone; none in a rehearsal.
    pub(super) backbone: Option<Backbone>,
    /// The sites asked; every active one when empty.
    pub(super) sites: Vec<SiteName>,
    /// Accepted deltas that a round needs.
    pub(super) quorum: usize,
}

impl Parts {
    /// The file.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!(
            "# Written by `tributary run new`; deploy/run.toml in the source explains every key.\n\
             # Ask what stands in its way: tributary run check run.toml\n\
             schema_version = 1\n\n\
             # Unique at the coordinator: a-z, 0-9 and `-`.\n\
             name = {}\n\n{}",
            quoted(self.name.as_str()),
            self.task()
        );
        if let Some(backbone) = &self.backbone {
            text += &backbone_tables(backbone);
            text += self.training();
            text += &self.further();
        }
        text += ROUNDS;
        text += &self.cohort();
        text + LIMITS
    }

    fn task(&self) -> String {
        let kind = quoted(self.kind.as_str());
        let more = match self.kind {
            Kind::Binary => "# Negative first.\nCLASSES",
            Kind::MultiClass => "CLASSES",
            Kind::MultiLabel => "# An image may have several of them, or none.\nCLASSES",
            Kind::Ordinal => "# The least grade first.\nCLASSES",
            Kind::Segmentation => {
                "# In the order of the mask's indices, background first.\nCLASSES"
            }
            Kind::Survival => "# labels.csv holds `time` and `event` (docs/objectives.md).\n",
            Kind::Mae => {
                "# Images without labels: guess the hidden patches.\nobjective = { kind = \"mae\" }\n"
            }
            Kind::SimClr => {
                "# Images without labels: two views of one image belong together.\nobjective = { kind = \"simclr\" }\n"
            }
            Kind::Dino => {
                "# Images without labels: one view foresees another.\nobjective = { kind = \"dino\" }\n"
            }
            Kind::Rehearsal => {
                "# No model and no image: a payload of this size travels.\npayload_bytes = 1_048_576\n"
            }
        };
        let names: Vec<Value> = self.classes.iter().map(|c| Value::from(c.as_str())).collect();
        let classes = format!("classes = {}\n", Value::from(names));
        format!("[task]\nkind = {kind}\n{}\n", more.replace("CLASSES", &classes))
    }

    fn training(&self) -> &'static str {
        match self.kind {
            // The set at risk is the batch's, a contrast is within a batch: both want large ones.
            Kind::Survival | Kind::SimClr | Kind::Dino => TRAINING_LARGE,
            Kind::Binary
            | Kind::MultiClass
            | Kind::MultiLabel
            | Kind::Ordinal
            | Kind::Segmentation
            | Kind::Mae
            | Kind::Rehearsal => TRAINING,
        }
    }

    fn further(&self) -> String {
        match self.kind {
            Kind::SimClr | Kind::Dino => VIEWS.to_owned(),
            Kind::Binary
            | Kind::MultiClass
            | Kind::MultiLabel
            | Kind::Ordinal
            | Kind::Segmentation
            | Kind::Survival
            | Kind::Mae
            | Kind::Rehearsal => String::new(),
        }
    }

    fn cohort(&self) -> String {
        let mut text = String::new();
        if !self.sites.is_empty() {
            let names: Vec<Value> = self.sites.iter().map(|s| Value::from(s.as_str())).collect();
            text += "# The sites asked; every active site when the table is left out.\n[cohort]\n";
            text += &format!("sites = {}\n\n", Value::from(names));
        }
        text + &format!(
            "[quorum]\n# Accepted deltas that a round needs.\nsites = {}\n\n",
            self.quorum
        )
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// `[backbone]` as a manifest has it.
#[derive(Serialize)]
struct Table<'b> {
    backbone: &'b Backbone,
}

fn backbone_tables(backbone: &Backbone) -> String {
    let table = toml::to_string(&Table { backbone }).expect("a backbone is plain data");
    format!(
        "# The frozen backbone's file, which every site holds, its shape, and how images are\n\
         # prepared for it: as the file and its card say.\n{table}\n{ADAPTER}"
    )
}

const ADAPTER: &str = "\
[adapter]
# LoRA in every block; docs/adaptation.md has the other kinds.
kind = \"lora\"
rank = 8
alpha = 16.0
targets = [\"q\", \"v\"]

";

const TRAINING: &str = "\
[training]
# Passes over the local training cases in each round, and images per optimiser step.
epochs = 1
batch_size = 16
# AdamW: peak learning rate, weight decay, steps of linear warm-up over the whole run.
learning_rate = 1e-3
weight_decay = 0.01
warmup_steps = 5
gradient_clip = 1.0
# Share of patients held out for evaluation, never trained on.
holdout = 0.2
seed = 1

";

const TRAINING_LARGE: &str = "\
[training]
# Passes over the local training cases in each round, and images per optimiser step.
epochs = 1
batch_size = 64
# AdamW: peak learning rate, weight decay, steps of linear warm-up over the whole run.
learning_rate = 1e-3
weight_decay = 0.01
warmup_steps = 5
gradient_clip = 1.0
# Share of patients held out for evaluation, never trained on.
holdout = 0.2
seed = 1

";

const VIEWS: &str = "\
# What two views of an image differ by.
[training.augment]
crop_area_min = 0.4
flip_horizontal = true
brightness = 0.4
contrast = 0.4

";

const ROUNDS: &str = "\
[rounds]
# Published rounds asked for.
count = 10
# Hard cap on one round: a slow site that makes progress is waited for until then.
round_deadline_s = 7200
# A site whose training step has not moved for so long is lost to the round.
stall_timeout_s = 600

";

const LIMITS: &str = "\
[limits]
# A delta is refused above this L2 norm, and a site that declares more cases than this.
delta_norm_max = 100.0
cases_max = 1_000_000
# Largest share of one site's weight in the mean: cases above it are used in part, not refused. Left
# out: no bound for two sites, two thirds for three, a half for more.
# share_max = 0.5
";
