//! docs/kubernetes.md: its manifests are what Kubernetes takes, and what they say to topofs is what it takes.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::package::repository;
use crate::common::mount::TOPOFS;
use crate::common::page::blocks;
use crate::common::{PYTHON, text};

/// The documents in the YAML of the page.
fn manifests() -> Vec<Value> {
    let page = std::fs::read_to_string(repository().join("docs/kubernetes.md")).unwrap();
    let script = "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin)]))";
    let mut python = Command::new(PYTHON);
    let mut python = python.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    python.stdin.take().unwrap().write_all(blocks(&page, "yaml").join("---\n").as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(list: &Value, key: &str) -> BTreeSet<String> {
    let list = list.as_array().cloned().unwrap_or_default();
    list.iter().map(|entry| entry[key].as_str().unwrap().to_owned()).collect()
}

/// What a pod is made of, in the pod itself or in what makes it.
fn pods(manifests: &[Value]) -> Vec<Value> {
    let spec =
        |it: &Value| if it["kind"] == "Pod" { it["spec"].clone() } else { it["spec"]["template"]["spec"].clone() };
    manifests.iter().map(spec).filter(|spec| spec["containers"].is_array()).collect()
}

#[test]
fn the_manifests_of_the_documentation_hold_together() {
    let manifests = manifests();
    let pods = pods(&manifests);
    assert!(pods.len() >= 3, "{manifests:?}");
    let mut mounts_of_topofs = 0;
    for pod in &pods {
        let volumes = names(&pod["volumes"], "name");
        let init = pod["initContainers"].as_array().cloned().unwrap_or_default();
        for container in pod["containers"].as_array().unwrap().iter().chain(&init) {
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            assert!(names(&container["volumeMounts"], "name").is_subset(&volumes), "{container}");
            let reaches_out = mounts.iter().any(|mount| mount["mountPropagation"] == "Bidirectional");
            if reaches_out {
                // Kubernetes refuses it otherwise.
                assert_eq!(container["securityContext"]["privileged"], true, "{container}");
            }
            let words: Vec<&str> =
                container["args"].as_array().into_iter().flatten().map(|word| word.as_str().unwrap()).collect();
            if container["image"].as_str().unwrap().contains("/topofs") && words.first() == Some(&"mount") {
                mounts_of_topofs += 1;
                takes(&words);
            }
        }
    }
    assert!(mounts_of_topofs >= 2, "{manifests:?}");
}

/// topofs knows these flags and their values, and finds nothing at `.invalid` to mount.
fn takes(words: &[&str]) {
    let known = text(&Command::new(TOPOFS).args(["mount", "--help"]).output().unwrap());
    for word in words.iter().filter(|word| word.starts_with("--")) {
        let name = word.split('=').next().unwrap();
        assert!(known.split_whitespace().any(|it| it.trim_end_matches(',') == name), "{name}: {words:?}");
    }
    assert!(words.contains(&"--foreground"), "a container ends with its first process: {words:?}");
    assert!(words.last().is_some_and(|point| point.starts_with('/')), "{words:?}");
}
