//! `data inspect --html`: one page without any outside resource, for the eyes of the site alone.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tributary_shared::outcome::Failure;

use crate::data::census::{Census, Thumbnail};

/// Refusals, duplicates and sizes listed on the page.
const LISTED_MAX: usize = 200;

const STYLE: &str = "
:root{color-scheme:light dark;--line:#d5d9df;--soft:#667085;--bar:#3b6ea8;--bad:#b42318;--warn:#fdf3d7;--ink:#5c4a00}
@media(prefers-color-scheme:dark){:root{--line:#3a4048;--soft:#98a2b3;--bar:#7fb0e6;--bad:#f97066;--warn:#3d3413;--ink:#f3e3a8}}
body{font:15px/1.5 system-ui,sans-serif;max-width:68rem;margin:2rem auto;padding:0 1.25rem}
h1{font-size:1.5rem;margin:0 0 .25rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.stay{background:var(--warn);color:var(--ink);padding:.6rem .9rem;border-radius:.4rem;margin:1rem 0}
.facts{display:flex;flex-wrap:wrap;gap:2rem;margin:1rem 0}.facts div{font-size:1.6rem;line-height:1.1}
.facts small{display:block;font-size:.8rem;color:var(--soft)}
table{border-collapse:collapse}td,th{padding:.3rem 1rem .3rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{font-weight:600;color:var(--soft);font-size:.85rem}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.levels{display:flex;align-items:flex-end;gap:2px;height:7rem;max-width:32rem;border-bottom:1px solid var(--line)}
.levels i{flex:1;background:var(--bar);min-height:1px}.ends{display:flex;justify-content:space-between;max-width:32rem;color:var(--soft);font-size:.8rem}
.pictures{display:flex;flex-wrap:wrap;gap:.75rem}figure{margin:0;width:7rem}
figure div{height:7rem;display:flex;align-items:center;justify-content:center;background:#000;border-radius:.25rem;overflow:hidden}
figcaption{font-size:.7rem;color:var(--soft);overflow-wrap:anywhere}.bad{color:var(--bad)}li{overflow-wrap:anywhere}
";

/// Writes the page; refuses a file that exists. Readable by its owner alone.
pub(super) fn write(census: &Census, file: &Path) -> Result<(), Failure> {
    let page = page(census);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(file).and_then(|mut open| {
        open.write_all(page.as_bytes())?;
        open.sync_all()
    });
    written.map_err(|error| refused(file, &error))
}

/// Before the images are read: a file that exists is never written over.
pub(super) fn check_free(file: &Path) -> Result<(), Failure> {
    match std::fs::symlink_metadata(file) {
        Ok(_) => Err(refused(file, &std::io::ErrorKind::AlreadyExists.into())),
        Err(_) => Ok(()),
    }
}

fn refused(file: &Path, error: &std::io::Error) -> Failure {
    let shown = file.display();
    if error.kind() == std::io::ErrorKind::AlreadyExists {
        return Failure::invalid("exists", format!("{shown} exists; name another file for --html"));
    }
    Failure::invalid("unwritable", format!("{shown} cannot be written: {error}"))
}

fn page(census: &Census) -> String {
    let mut page = String::new();
    let mut add = |text: &str| page.push_str(text);
    add("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    add(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
    );
    add("<meta name=\"referrer\" content=\"no-referrer\"><title>Data inspection</title><style>");
    add(STYLE);
    add("</style></head><body>\n");
    add(&format!("<h1>{}</h1>\n", escaped(&census.source)));
    add(
        "<p class=\"stay\"><strong>This page shows patients.</strong> It must stay at this site: do not send it, do not upload it.</p>\n",
    );
    add(&facts(census));
    add(&counts(census));
    add(&levels(census));
    add(&findings(census));
    add(&pictures(census));
    add("</body></html>\n");
    page
}

fn facts(census: &Census) -> String {
    let fact = |number: usize, what: &str, bad: bool| {
        let class = if bad && number > 0 { " class=\"bad\"" } else { "" };
        format!("<div{class}>{number}<small>{what}</small></div>")
    };
    let copied = census.duplicates.iter().filter(|d| d.several_patients).count();
    format!(
        "<section class=\"facts\">{}{}{}{}{}</section>\n",
        fact(census.cases, "images", false),
        fact(census.patients, "patients", false),
        fact(census.refused_count, "refused", true),
        fact(census.duplicate_groups, "groups of equal images", false),
        fact(copied, "of them across patients", true),
    )
}

fn counts(census: &Census) -> String {
    let mut rows: Vec<[String; 3]> = Vec::new();
    for class in &census.classes {
        rows.push([class.class.clone(), class.cases.to_string(), class.patients.to_string()]);
    }
    if census.without_class > 0 {
        rows.push(["(none)".to_owned(), census.without_class.to_string(), String::new()]);
    }
    let mut text = section("Classes", &table(&["class", "images", "patients"], &rows));
    let mut sizes: Vec<_> = census.sizes.iter().collect();
    sizes.sort_by_key(|size| std::cmp::Reverse(size.cases));
    let size = |size: &&crate::data::census::SizeCount| {
        [format!("{} x {} pixels", size.width, size.height), size.cases.to_string()]
    };
    let mut rows: Vec<_> = sizes.iter().take(12).map(size).collect();
    if sizes.len() > 12 {
        let rest: usize = sizes[12..].iter().map(|size| size.cases).sum();
        rows.push([format!("{} other sizes", sizes.len() - 12), rest.to_string()]);
    }
    let of = |what: &str, counts: &std::collections::BTreeMap<String, usize>| {
        counts
            .iter()
            .map(|(name, cases)| [format!("{what}: {name}"), cases.to_string()])
            .collect::<Vec<_>>()
    };
    rows.extend(of("modality", &census.modalities));
    rows.extend(of("plane", &census.planes));
    if let Some([least, largest]) = census.spacing_mm {
        rows.push([format!("pixel spacing {least:.3} to {largest:.3} mm"), String::new()]);
    }
    text += &section("Pictures", &table(&["what", "images"], &rows));
    text
}

fn levels(census: &Census) -> String {
    let highest = census.levels.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let bars: String = census
        .levels
        .iter()
        .map(|share| {
            format!(
                "<i style=\"height:{:.1}%\" title=\"{:.2} % of the pixels\"></i>",
                share / highest * 100.0,
                share * 100.0
            )
        })
        .collect();
    let body = format!(
        "<div class=\"levels\">{bars}</div><div class=\"ends\"><span>black</span><span>white</span></div>"
    );
    section("Grey levels of all pixels", &body)
}

fn findings(census: &Census) -> String {
    let mut text = String::new();
    let odd: Vec<_> = census
        .oddities
        .iter()
        .map(|(what, odd)| [(*what).to_owned(), odd.cases.to_string(), odd.examples.join(", ")])
        .collect();
    if !odd.is_empty() {
        text += &section("Odd", &table(&["what", "images", "such as"], &odd));
    }
    let mut duplicates: Vec<_> = census.duplicates.iter().collect();
    duplicates.sort_by_key(|duplicate| !duplicate.several_patients);
    let rows: Vec<_> = duplicates
        .iter()
        .map(|d| {
            let whose = if d.several_patients { "different patients" } else { "one patient" };
            [whose.to_owned(), d.cases.to_string(), d.examples.join(", ")]
        })
        .collect();
    if !rows.is_empty() {
        text += &section("Equal images", &table(&["of", "images", "such as"], &rows));
    }
    let counted = |counts: &std::collections::BTreeMap<&'static str, usize>| -> Vec<[String; 2]> {
        counts.iter().map(|(what, n)| [(*what).to_owned(), n.to_string()]).collect()
    };
    if !census.notes.is_empty() {
        text += &section("Worth knowing", &table(&["what", "files"], &counted(&census.notes)));
    }
    if !census.passed_over.is_empty() {
        let rows = counted(&census.passed_over);
        text += &section("Passed over", &table(&["why", "files"], &rows));
    }
    if census.refused_count > 0 {
        let listed = census.refused.iter().take(LISTED_MAX);
        let mut items: String = listed.map(|line| format!("<li>{}</li>", escaped(line))).collect();
        let rest = census.refused_count - census.refused.len().min(LISTED_MAX);
        if rest > 0 {
            items += &format!("<li>and {rest} more</li>");
        }
        text += &section("Refused", &format!("<ul class=\"bad\">{items}</ul>"));
    }
    text
}

fn pictures(census: &Census) -> String {
    let mut text = String::new();
    let names = census.classes.iter().map(|class| class.class.as_str());
    let classes = names.enumerate().map(|(index, name)| (Some(index), name));
    for (class, name) in classes.chain([(None, "(none)")]) {
        let figures: String =
            census.thumbnails.iter().filter(|t| t.class == class).map(figure).collect();
        if !figures.is_empty() {
            let body = format!("<div class=\"pictures\">{figures}</div>");
            text += &section(&format!("First images of {name}"), &body);
        }
    }
    text
}

fn figure(thumbnail: &Thumbnail) -> String {
    let case = escaped(&thumbnail.case);
    let png = STANDARD.encode(&thumbnail.png);
    format!(
        "<figure><div><img alt=\"{case}\" src=\"data:image/png;base64,{png}\"></div>\
         <figcaption>{case}</figcaption></figure>"
    )
}

fn section(title: &str, body: &str) -> String {
    format!("<section><h2>{}</h2>{body}</section>\n", escaped(title))
}

fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    // The second column holds the numbers, and so does a third one without examples.
    let class = |column: usize| {
        let number = column == 1 || (column == 2 && head[column] == "patients");
        if number { " class=\"n\"" } else { "" }
    };
    let mut text = String::from("<table><tr>");
    for (column, title) in head.iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(text, "<th{}>{}</th>", class(column), escaped(title));
    }
    for row in rows {
        text += "</tr><tr>";
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(text, "<td{}>{}</td>", class(column), escaped(cell));
        }
    }
    text + "</tr></table>"
}

/// Safe in text and in quoted attributes.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            '\'' => safe += "&#39;",
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}
