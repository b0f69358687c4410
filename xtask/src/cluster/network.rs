//! What the host must do so that pods reach the world and the world's answers reach pods. Every rule carries our comment,
//! by which it is found and removed again.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::place::{BRIDGE, POD_RANGE, Place, RULE_COMMENT};
use crate::{process, tools::go};

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

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

/// Takes back what [`open`], the bridge plugin and kube-proxy did; fine if they did nothing.
pub(super) fn close(place: &Place) -> Result<()> {
    if has_iptables() {
        for (table, rule) in rules() {
            let delete = || process::run(Command::new("iptables").args(["-w", "-t", table, "-D"]).args(&rule));
            // A run that was killed twice may have left a rule more than once; it fails when none is left.
            while delete().is_ok() {}
        }
        remove_service_rules()?;
    }
    if fs::exists(format!("/sys/class/net/{BRIDGE}"))? {
        process::run(Command::new("ip").args(["link", "delete", BRIDGE]))?;
    }
    if let Ok(before) = fs::read_to_string(remembered(place)) {
        fs::write(FORWARDING, before).with_context(|| format!("write {FORWARDING}"))?;
        fs::remove_file(remembered(place))?;
    }
    Ok(())
}

fn has_iptables() -> bool {
    Command::new("iptables")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Whether kube-proxy's chains are there: ours, or another Kubernetes's.
pub(super) fn has_service_rules() -> Result<bool> {
    Ok(process::read(Command::new("iptables").args(["-w", "-t", "nat", "-S"]))?.contains("-N KUBE-"))
}

fn remove_service_rules() -> Result<()> {
    if has_service_rules()? {
        process::run(Command::new(go::path("kube-proxy")?).args(["--cleanup", "--v=0"]))?;
    }
    Ok(())
}

fn remembered(place: &Place) -> PathBuf {
    place.state.join("ip_forward.before")
}
