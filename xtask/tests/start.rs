//! The real parts really start: API servers side by side, people by certificate, Prometheus. No root needed; programs that
//! are not in the cache yet are built first. Nodes are tried by the journey, which needs one anyway.

use anyhow::Result;
use k8s_openapi::api::{authentication::v1::SelfSubjectReview, core::v1::Namespace};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
    config::KubeConfigOptions,
};
use xtask::{
    cluster::{ControlPlane, ControlPlaneOptions, Prometheus},
    process::is_alive,
    progress::Progress,
    tools::go,
};

async fn who_am_i(client: Client) -> Result<(String, Vec<String>)> {
    let review = Api::all(client)
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await?;
    let user = review.status.and_then(|status| status.user_info).unwrap_or_default();
    Ok((user.username.unwrap_or_default(), user.groups.unwrap_or_default()))
}

/// Process ids of children whose command line names `folder`.
fn children_in(folder: &str) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let named =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(folder));
    Ok(pids.filter(named).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn control_planes_run_side_by_side_and_know_their_own_people_only() -> Result<()> {
    go::ensure(&go::CONTROL_PLANE, &Progress::stderr())?;
    let options = ControlPlaneOptions {
        controller_manager: true,
        ..Default::default()
    };
    let bare = ControlPlaneOptions::default();
    let (one, two) = tokio::try_join!(ControlPlane::start(&options), ControlPlane::start(&bare))?;
    assert_ne!(one.server(), two.server());

    let (name, groups) = who_am_i(one.client_for("alice@example.com", &["approvers"]).await?).await?;
    assert_eq!(name, "alice@example.com");
    assert!(groups.contains(&"approvers".to_owned()), "{groups:?}");

    // Nobody gave alice a right, so the real authorizer is at work.
    let denied = Api::<Namespace>::all(one.client_for("alice@example.com", &[]).await?)
        .list(&ListParams::default())
        .await;
    assert!(matches!(denied, Err(kube::Error::Api(status)) if status.code == 403));

    let written = one.kubeconfig_for("alice@example.com", &["approvers"])?;
    let text = std::fs::read_to_string(&written)?;
    let kubeconfig: kube::config::Kubeconfig = serde_json::from_str(&text.replace(one.server(), two.server()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    assert!(
        who_am_i(Client::try_from(config)?).await.is_err(),
        "the other cluster trusts a stranger's certificate"
    );

    let folder = one.folder().to_owned();
    let children = children_in(&folder.display().to_string())?;
    assert_eq!(children.len(), 3, "etcd, API server, controller manager");
    drop(one);
    assert!(children.into_iter().all(|pid| !is_alive(pid)));
    assert!(!folder.exists());
    Ok(())
}

#[tokio::test]
async fn a_server_that_refuses_its_flags_is_reported_with_its_own_words() -> Result<()> {
    go::ensure(&go::CONTROL_PLANE, &Progress::stderr())?;
    let options = ControlPlaneOptions {
        api_server_flags: vec!["--no-such-flag".into()],
        ..Default::default()
    };
    let error = ControlPlane::start(&options)
        .await
        .expect_err("it started with an unknown flag")
        .to_string();
    assert!(
        error.contains("kube-apiserver ended") && error.contains("no-such-flag"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn prometheus_answers_queries_and_reports_a_bad_configuration() -> Result<()> {
    Prometheus::ensure(&Progress::stderr())?;
    let loopback = std::net::Ipv4Addr::LOCALHOST;
    let prometheus = Prometheus::start(loopback, "global: {scrape_interval: 1s}\nscrape_configs: []\n").await?;
    let url = format!("{}/api/v1/query?query=vector(42)", prometheus.url());
    let answer: serde_json::Value = reqwest::get(url).await?.json().await?;
    assert_eq!(answer["data"]["result"][0]["value"][1], "42");

    let error = Prometheus::start(loopback, "no_such_key: 1\n")
        .await
        .expect_err("a bad configuration was taken");
    assert!(error.to_string().contains("no_such_key"), "{error}");
    Ok(())
}
