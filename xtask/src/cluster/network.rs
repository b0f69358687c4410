//! What the host must do so that pods reach the world and the world's answers reach pods, and how that is taken back.
//! Rules are found again by our comment, by our bridge's name, and by the prefix of all that Kubernetes adds.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::place::{BRIDGE, POD_RANGE, Place, RULE_COMMENT};
use crate::process;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Chains of kubelet and kube-proxy begin so.
const KUBERNETES: &str = "KUBE-";

/// The rules: table and what follows `-A`.
fn rules() -> [(&'static str, Vec<&'static str>); 3] {
    let commented = |mut rule: Vec<&'static str>| {
        rule.extend(["-m", "comment", "--comment", RULE_COMMENT]);
        rule
    };
    [
        (
            "nat",
            commented(vec![
                "POSTROUTING",
                "-s",
                POD_RANGE,
                "!",
                "-d",
                POD_RANGE,
                "-j",
                "MASQUERADE",
            ]),
        ),
        // Where another engine set the policy to DROP, pods would be cut off.
        ("filter", commented(vec!["FORWARD", "-i", BRIDGE, "-j", "ACCEPT"])),
        ("filter", commented(vec!["FORWARD", "-o", BRIDGE, "-j", "ACCEPT"])),
    ]
}

/// Lets packets of pods through, and remembers what the host did before.
pub(super) fn open(place: &Place) -> Result<()> {
    let before = fs::read_to_string(FORWARDING).with_context(|| format!("read {FORWARDING}"))?;
    fs::write(remembered(place), before)?;
    fs::write(FORWARDING, "1").with_context(|| format!("write {FORWARDING}: forwarding packets needs root"))?;
    for (table, rule) in rules() {
        process::run(Command::new("iptables").args(["-w", "-t", table, "-A"]).args(rule))?;
    }
    Ok(())
}

/// Takes back what [`open`], the bridge plugin, kubelet and kube-proxy did; fine if they did nothing.
pub(super) fn close(place: &Place) -> Result<()> {
    remove_rules("iptables")?;
    remove_rules("ip6tables")?;
    if fs::exists(format!("/sys/class/net/{BRIDGE}"))? {
        process::run(Command::new("ip").args(["link", "delete", BRIDGE]))?;
    }
    if let Ok(before) = fs::read_to_string(remembered(place)) {
        fs::write(FORWARDING, before).with_context(|| format!("write {FORWARDING}"))?;
        fs::remove_file(remembered(place))?;
    }
    Ok(())
}

/// Whether chains of Kubernetes are there: ours, or another's.
pub(super) fn has_service_rules() -> Result<bool> {
    Ok(saved("iptables")?.contains(KUBERNETES))
}

fn remove_rules(program: &str) -> Result<()> {
    let before = saved(program)?;
    let after = without_ours(&before);
    if after == before {
        return Ok(());
    }
    let mut restore = Command::new(format!("{program}-restore"));
    let mut child = restore
        .arg("-w")
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}-restore"))?;
    // Taken, so that it is closed before we wait.
    child
        .stdin
        .take()
        .context("a pipe was asked for")?
        .write_all(after.as_bytes())?;
    let status = child.wait()?;
    if status.success() {
        Ok(())
    } else {
        bail!("{program}-restore failed ({status})")
    }
}

/// All tables as text; empty where the program is not installed, for then it has made no rules.
fn saved(program: &str) -> Result<String> {
    let save = format!("{program}-save");
    if Command::new(&save).arg("--version").output().is_err() {
        return Ok(String::new());
    }
    let output = process::run(&mut Command::new(&save))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same tables without the chains and rules that carry our names; everything else stays to the letter.
fn without_ours(saved: &str) -> String {
    let ours = |line: &&str| line.contains(KUBERNETES) || line.contains(RULE_COMMENT);
    saved
        .lines()
        .filter(|line| !ours(line))
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn remembered(place: &Place) -> PathBuf {
    place.state.join("ip_forward.before")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_rules_are_taken_out() {
        let saved = "*nat\n:POSTROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:DOCKER - [0:0]\n\
            -A POSTROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
            -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\n\
            -A POSTROUTING -s 10.213.0.0/16 -m comment --comment \"assayer local cluster\" -j MASQUERADE\nCOMMIT\n";
        let expected = "*nat\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
            -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\nCOMMIT\n";
        assert_eq!(without_ours(saved), expected);
        assert_eq!(without_ours(expected), expected);
    }

    #[test]
    fn every_rule_carries_the_comment_by_which_it_is_found() {
        assert!(rules().iter().all(|(_, rule)| rule.last() == Some(&RULE_COMMENT)));
    }
}
