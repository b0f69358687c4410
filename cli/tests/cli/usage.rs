//! Wrong use, help and completion: what somebody sees who does not know the program yet.

use std::process::Command;

use crate::scene::{Scene, said};

const COMMANDS: [&str; 6] = ["optimize", "pin", "push", "verify", "approve", "completion"];

#[test]
fn every_command_explains_itself() {
    let scene = Scene::new(|_| {});
    let all = scene.assayer(&["--help"]).output().unwrap();
    assert!(all.status.success());
    for command in COMMANDS {
        assert!(said(&all).contains(command), "{}", said(&all));
        let help = scene.assayer(&[command, "--help"]).output().unwrap();
        assert!(
            help.status.success() && help.stderr.is_empty(),
            "{command}: {}",
            said(&help)
        );
        assert!(said(&help).contains("Usage: assayer"), "{}", said(&help));
        assert!(!said(&help).contains('\u{1b}'), "colours are for terminals");
    }
    assert!(!said(&all).contains("worker"), "the worker is for the program itself");
}

#[test]
fn wrong_use_is_told_from_failure() {
    let scene = Scene::new(|_| {});
    for wrong in [
        &["optimize"][..],
        &["optimise", "-f", "x"],
        &["optimize", "-f", "x", "--threads", "0"],
        &["completion", "cmd"],
        &[],
    ] {
        let output = scene.assayer(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", said(&output));
    }
    let two = "kind: ModelOptimization\n---\nkind: ModelPromotion\n";
    std::fs::write(scene.path("two.yaml"), two).unwrap();
    let file = scene.path("two.yaml").display().to_string();
    let several = scene.assayer(&["optimize", "-f", &file]).output().unwrap();
    assert!(said(&several).contains("into a file of its own"), "{}", said(&several));
    let missing = scene.assayer(&["optimize", "-f", "no.yaml"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1));
    assert!(said(&missing).contains("no.yaml"), "{}", said(&missing));
}

/// Loaded by a real shell, which is then asked what may follow.
#[test]
fn completion_completes_in_bash() {
    let scene = Scene::new(|_| {});
    let script = scene.assayer(&["completion", "bash"]).output().unwrap();
    assert!(script.status.success(), "{}", said(&script));
    std::fs::write(scene.path("completion.bash"), &script.stdout).unwrap();
    let ask = |words: &str, at: usize| {
        let program = format!(
            "set -e; . ./completion.bash; COMP_WORDS=({words}); COMP_CWORD={at}; \
             $(complete -p assayer | sed 's/.*-F \\([^ ]*\\).*/\\1/') assayer \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{}]}}\"; \
             echo \"${{COMPREPLY[@]}}\"",
            at - 1
        );
        let mut bash = Command::new("bash");
        let output = bash
            .args(["-c", &program])
            .current_dir(scene.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output).trim().to_owned()
    };
    assert_eq!(ask("assayer opt", 1), "optimize");
    assert_eq!(ask("assayer optimize --thr", 2), "--threads");
    assert!(
        !ask("assayer ''", 1).contains("worker"),
        "the worker is for the program itself"
    );
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let output = scene.assayer(&["completion", shell]).output().unwrap();
        assert!(output.status.success() && said(&output).contains("optimize"), "{shell}");
    }
}
