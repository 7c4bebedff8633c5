//! docs/operations/metrics.md has every metric of the code, and no document names one that is not there.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

const ROLES: [&str; 4] = ["ingest", "dispatcher", "retry-scheduler", "control-plane"];
/// What the names of metrics begin with. Other names begin with `floodway_`, too: users of databases, crates.
const PREFIXES: [&str; 4] =
    ["floodway_ingest_", "floodway_dispatcher_", "floodway_retry_", "floodway_control_plane_"];
/// What a histogram's samples end with.
const SAMPLES: [&str; 3] = ["_bucket", "_sum", "_count"];
/// Names that are crates' and begin like metrics'.
const NO_METRICS: [&str; 1] = ["floodway_retry_scheduler"];

#[test]
fn the_page_names_every_metric_of_the_code_and_no_other() {
    let page = read("docs/operations/metrics.md");
    // What stands at the beginning of a row is told about in it; elsewhere metrics are only used.
    let rows: String = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .fold(String::new(), |rows, name| rows + name + "\n");
    assert_eq!(metrics_in(&rows), metrics_of_the_code());
}

#[test]
fn every_document_names_metrics_that_the_code_has() {
    let code = metrics_of_the_code();
    let mut documents =
        vec![root().join("README.md"), root().join("ARCHITECTURE.md"), root().join("CHANGELOG.md")];
    collect_documents(&root().join("docs"), &mut documents);
    assert!(documents.len() > 20, "the documents are elsewhere: {documents:?}");
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for name in metrics_in(&text) {
            assert!(
                code.contains(&name) || is_sample(&name, &code),
                "{}: there is no metric {name}",
                document.display()
            );
        }
    }
}

fn is_sample(name: &str, code: &BTreeSet<String>) -> bool {
    SAMPLES.iter().any(|sample| name.strip_suffix(sample).is_some_and(|base| code.contains(base)))
}

/// Names in the crates' metrics.rs, the one place where they are made.
fn metrics_of_the_code() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for role in ROLES {
        let found = metrics_in(&read(&format!("{role}/src/metrics.rs")));
        assert!(!found.is_empty(), "{role} names its metrics elsewhere");
        names.extend(found);
    }
    names
}

fn metrics_in(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        .filter(|word| PREFIXES.iter().any(|prefix| word.starts_with(prefix)) && !NO_METRICS.contains(word))
        // What ends so stands for all that begin so.
        .filter(|word| !word.ends_with('_'))
        .map(str::to_owned)
        .collect()
}

fn collect_documents(folder: &Path, documents: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_documents(&path, documents);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            documents.push(path);
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
