//! `kubectl assayer approve` against a real API server with the chart's policies: what is shown, what is refused, what is written.
//!
//! The operator is played by the administrator: the policy that keeps status for it is left out.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use assayer_crds::digest::Digest;
use assayer_crds::evidence::Statement;
use assayer_operator::evidence::keys::SigningKey;
use assayer_operator::evidence::store;
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::cluster::{ControlPlane, ControlPlaneOptions};
use xtask::tools::go;

use crate::scene::said;

const IMAGE: &str = "registry.test/assayer@sha256:1111111111111111111111111111111111111111111111111111111111111111";
const REQUEST: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

struct Cluster {
    control_plane: ControlPlane,
    /// Holds the plugin, the administrator's kubeconfig and keys.
    folder: TempDir,
    key: SigningKey,
}

impl Cluster {
    async fn start() -> Self {
        let control_plane = ControlPlane::start(&ControlPlaneOptions::default()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_assayer"), folder.path().join("kubectl-assayer")).unwrap();
        let cluster = Self {
            control_plane,
            folder,
            key: SigningKey::generate().unwrap(),
        };
        for namespace in ["assayer-system", "ml"] {
            cluster.admin(&["create", "namespace", namespace], "");
        }
        cluster.admin(&["apply", "--server-side", "-f", "-"], &chart());
        let bound = |user: &str, role: &str| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": format!("{user}-{role}"), "namespace": "ml"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]})
        };
        let deployer = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "deployer"},
            "rules": [{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["patch"]}]});
        let approver = "assayer-approver-security";
        let objects = [
            deployer,
            bound("rita", "deployer"),
            bound("rita", "assayer-edit"),
            bound("rita", approver),
            bound("bob", approver),
            bound("carol", approver),
        ];
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        cluster.admin(&["apply", "-f", "-"], &list.to_string());
        cluster
    }

    /// Anything as somebody, with `kubectl` and its plugin on the path.
    fn kubectl(&self, kubeconfig: &Path, arguments: &[&str], input: &str) -> Output {
        let file = self.folder.path().join("input");
        std::fs::write(&file, input).unwrap();
        let path = format!("{}:/usr/bin:/bin", self.folder.path().display());
        let mut command = Command::new(go::path("kubectl").unwrap());
        command.args(arguments).env("KUBECONFIG", kubeconfig).env("PATH", path);
        command.stdin(std::fs::File::open(file).unwrap()).output().unwrap()
    }

    fn admin(&self, arguments: &[&str], input: &str) -> String {
        let output = self.kubectl(self.control_plane.kubeconfig(), arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn person(&self, name: &str, group: &str) -> PathBuf {
        self.control_plane.kubeconfig_for(name, &[group]).unwrap()
    }

    fn approve(&self, kubeconfig: &Path, arguments: &[&str]) -> Output {
        let plugin = [&["assayer", "approve", "prod", "--namespace", "ml"], arguments].concat();
        self.kubectl(kubeconfig, &plugin, "")
    }

    /// Rita asks; repeated until the policies stamp who she is.
    fn request(&self, rita: &Path) {
        let text = include_str!("../../../crds/tests/rules/modelpromotion.yaml");
        let mut manifest: Value = serde_saphyr::from_str(text).unwrap();
        manifest["metadata"] = json!({"name": "prod", "namespace": "ml"});
        let until = Instant::now() + Duration::from_secs(90);
        loop {
            let dry = ["create", "-f", "-", "--dry-run=server", "-o", "json"];
            let output = self.kubectl(rita, &dry, &manifest.to_string());
            if output.status.success() && said(&output).contains("assayer.dev/requested-by") {
                break;
            }
            assert!(Instant::now() < until, "nobody stamps the requester: {}", said(&output));
            std::thread::sleep(Duration::from_millis(200));
        }
        let output = self.kubectl(rita, &["create", "-f", "-"], &manifest.to_string());
        assert!(output.status.success(), "{}", said(&output));
    }

    /// What the operator would write: this waits, resting on evidence with this digest.
    fn status(&self, phase: &str, evidence: (&str, &str)) {
        let generation: Value =
            serde_json::from_str(&self.admin(&["get", "mpromo", "prod", "-n", "ml", "-o", "json"], "")).unwrap();
        let status = json!({"status": {
            "observedGeneration": generation["metadata"]["generation"], "phase": phase, "summary": {"approvals": "0/2"},
            "request": {
                "digest": REQUEST, "candidate": "int8", "tier": "grave", "policyDigest": REQUEST, "required": [{"role": "security", "count": 2}],
                "artifact": {"uri": "", "artifactDigest": "", "modelDigest": "", "bytes": 1},
                "evidence": {"configMap": evidence.0, "digest": evidence.1},
            },
        }});
        let patch = status.to_string();
        let arguments = [
            "patch",
            "mpromo",
            "prod",
            "-n",
            "ml",
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ];
        self.admin(&arguments, "");
    }

    fn annotation(&self, name: &str) -> Value {
        let text = self.admin(&["get", "mpromo", "prod", "-n", "ml", "-o", "json"], "");
        serde_json::from_str::<Value>(&text).unwrap()["metadata"]["annotations"][name].clone()
    }
}

fn chart() -> String {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/assayer");
    let mut helm = Command::new(go::path("helm").unwrap());
    helm.args(["template", "assayer"]).arg(chart);
    helm.args(["--namespace", "assayer-system", "--kube-version", "1.36.0"]);
    helm.args([
        "--api-versions",
        "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy",
    ]);
    let images = [format!("image={IMAGE}"), format!("workerImage={IMAGE}")];
    let off = [
        "policies.status=false",
        "policies.evidence=false",
        "rbac.approverRoles={security}",
    ];
    for value in images.iter().map(String::as_str).chain(off) {
        helm.args(["--set", value]);
    }
    let output = helm.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn statement() -> Statement {
    let [model, artifact] = ["model", "artifact"].map(|what| Digest::of(what.as_bytes()));
    let uri = format!("oci://r.test/models/magika@{artifact}");
    serde_json::from_value(json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": "https://assayer.dev/evidence/v1",
        "subject": [{"name": "model", "digest": {"sha256": model.hex()}}, {"name": uri, "digest": {"sha256": artifact.hex()}}],
        "predicate": {
            "recordedAt": "2026-01-01T00:00:00Z", "optimization": {"namespace": "ml", "name": "o", "uid": "u", "generation": 1},
            "owner": {"group": "file-security", "contact": "c"}, "influences": ["Security"], "model": {"name": "magika", "version": "3.3.0"},
            "candidate": "int8", "technique": "static-int8", "planDigest": model, "spec": {},
            "made": {"uri": uri, "tag": "t", "artifactDigest": artifact, "modelDigest": model, "baselineDigest": artifact,
                "files": [], "bytes": 1, "opset": [17, 17], "passes": [], "calibrationRows": 0, "seconds": 1.0, "peakMemoryBytes": 1},
            "madeBy": {"worker": "0.1.0"}, "baseline": [], "measured": [],
            "verdicts": [{"gate": "p99", "verdict": "Passed", "severity": "Block", "metric": "latencyP99", "message": "latencyP99 0.49 times"}],
            "workerImage": IMAGE, "runner": "kubernetes"
        }
    }))
    .unwrap()
}

/// Asserts how it ended and that all of these words were said.
#[track_caller]
fn ended(output: &Output, code: i32, words: &[&str]) {
    let told = said(output);
    assert_eq!(output.status.code(), Some(code), "{told}");
    for word in words {
        assert!(told.contains(word), "`{word}` is not in: {told}");
    }
}

#[tokio::test]
async fn an_approver_sees_the_evidence_first_and_says_yes_to_exactly_that() {
    let cluster = Cluster::start().await;
    let [rita, bob, carol] =
        [("rita", "ml"), ("bob", "reviewers"), ("carol", "reviewers")].map(|(name, group)| cluster.person(name, group));
    cluster.request(&rita);
    ended(&cluster.approve(&bob, &[]), 1, &["has not seen the newest spec"]);

    let statement = statement();
    let digest = store::digest_of(&statement).unwrap();
    let map = store::config_map("ml", &statement, &cluster.key).unwrap();
    let name = store::name_of(&digest);
    cluster.admin(
        &["create", "-f", "-"],
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": map.metadata, "data": map.data}).to_string(),
    );
    cluster.status("AwaitingApproval", (&name, REQUEST));
    ended(&cluster.approve(&bob, &[]), 1, &[digest.as_str(), "don't approve"]);
    cluster.status("AwaitingApproval", (&name, digest.as_str()));

    let shown = [
        "latencyP99 0.49 times",
        "requested by rita",
        "live now: no model",
        "was not checked here",
    ];
    ended(
        &cluster.approve(&bob, &[]),
        1,
        &[&shown[..], &["no reason was given: nothing was written"]].concat(),
    );
    ended(
        &cluster.approve(&bob, &["--reason", "read"]),
        1,
        &["not confirmed: nothing was written"],
    );
    ended(
        &cluster.approve(&bob, &["--yes"]),
        2,
        &["--reason", "Usage: kubectl assayer approve"],
    );
    assert!(cluster.annotation("approve.assayer.dev/security").is_null());

    let public = cluster.folder.path().join("signing.pub");
    std::fs::write(&public, SigningKey::generate().unwrap().public().pem()).unwrap();
    let public = public.to_str().unwrap().to_owned();
    let yes = ["--yes", "--reason", "read the evidence", "--key", &public];
    ended(&cluster.approve(&bob, &yes), 1, &["no signature of the envelope holds"]);
    std::fs::write(&public, cluster.key.public().pem()).unwrap();
    ended(
        &cluster.approve(&rita, &yes),
        1,
        &["the cluster refused", "requested ml/prod"],
    );

    ended(
        &cluster.approve(&bob, &yes),
        0,
        &["holds for key", "approved sha256:2222", "as bob in role security"],
    );
    assert_eq!(cluster.annotation("approve.assayer.dev/security"), REQUEST);
    assert_eq!(cluster.annotation("approved-by.assayer.dev/security"), "bob");
    assert_eq!(
        cluster.annotation("approve-reason.assayer.dev/security"),
        "read the evidence"
    );
    ended(
        &cluster.approve(&bob, &yes),
        1,
        &["bob has spoken on this request already"],
    );
    ended(&cluster.approve(&carol, &yes), 0, &["as carol in role security.2"]);
    assert_eq!(cluster.annotation("approved-by.assayer.dev/security.2"), "carol");

    cluster.status("Live", (&name, digest.as_str()));
    ended(
        &cluster.approve(&carol, &yes),
        1,
        &["prod is Live: nothing waits for approval"],
    );
}
