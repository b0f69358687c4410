//! Kubernetes and its neighbours, built once from the Go module proxy and kept in the cache by version.
//! Decides which programs are missing and builds those; a program that is there is never built again.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    cache::{self, Lock},
    process,
    progress::Progress,
};

/// A Go module of `xtask/go/`: its `go.mod` pins the version, its `go.sum` the bytes.
#[derive(Debug)]
struct Module {
    folder: &'static str,
    /// The module whose required version names the build in the cache.
    versioned: &'static str,
    /// What the linker is told; `{v}` stands for the version.
    linker: &'static str,
    /// Build tags.
    tags: &'static str,
    cgo: bool,
    /// Each program's name and package.
    programs: &'static [(&'static str, &'static str)],
}

/// Without its version flags the API server calls itself v0.0.0, and clients believe it.
const KUBERNETES_VERSION: &str = "-X k8s.io/component-base/version.gitVersion={v} \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor={minor}";

const MODULES: [Module; 6] = [
    Module {
        folder: "etcd",
        versioned: "go.etcd.io/etcd/server/v3",
        linker: "",
        tags: "",
        cgo: false,
        programs: &[("etcd", "go.etcd.io/etcd/server/v3")],
    },
    Module {
        folder: "kubernetes",
        versioned: "k8s.io/kubernetes",
        linker: KUBERNETES_VERSION,
        tags: "",
        cgo: false,
        programs: &[
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            (
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
        ],
    },
    Module {
        folder: "crane",
        versioned: "github.com/google/go-containerregistry",
        linker: "",
        tags: "",
        cgo: false,
        programs: &[("crane", "github.com/google/go-containerregistry/cmd/crane")],
    },
    Module {
        folder: "runc",
        versioned: "github.com/opencontainers/runc",
        linker: "",
        tags: "seccomp",
        cgo: true,
        programs: &[("runc", "github.com/opencontainers/runc")],
    },
    Module {
        folder: "containerd",
        versioned: "github.com/containerd/containerd/v2",
        linker: "",
        tags: "",
        cgo: false,
        programs: &[
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            (
                "containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            ),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ],
    },
    Module {
        folder: "helm",
        versioned: "helm.sh/helm/v4",
        linker: "-X helm.sh/helm/v4/internal/version.version={v}",
        tags: "",
        cgo: false,
        programs: &[("helm", "helm.sh/helm/v4/cmd/helm")],
    },
];

/// What an API server without a node needs.
pub const CONTROL_PLANE: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"];

/// Every program, in the order in which they are worth having.
pub fn all() -> impl Iterator<Item = &'static str> {
    MODULES.iter().flat_map(|module| module.programs).map(|(name, _)| *name)
}

/// Where `program` is: in `$KUBEBUILDER_ASSETS` if it is there, else in the cache.
pub fn path(program: &str) -> Result<PathBuf> {
    if let Some(given) = from_assets(program) {
        return Ok(given);
    }
    let (module, _) = find(program)?;
    let path = cached(module, program)?;
    if !path.exists() {
        bail!(
            "{program} is not built ({} does not exist): run `cargo xtask tools`",
            path.display()
        );
    }
    Ok(path)
}

/// The folder with a module's programs, for programs that look for each other by `PATH`.
pub fn folder_of(program: &str) -> Result<PathBuf> {
    Ok(path(program)?.parent().map(Path::to_owned).unwrap_or_default())
}

/// Builds those of `programs` that are missing; cold, all of them take about ten minutes on two cores.
///
/// What Go compiles on the way is kept aside for as long as that takes: in the user's own build cache, 5 GB would lie that nobody reads again.
pub fn ensure(programs: &[&str], progress: &Progress) -> Result<()> {
    if missing(programs)?.is_empty() {
        return Ok(());
    }
    let _one_builder = Lock::wait("go-build", progress)?;
    // Another process may have built them while we waited.
    let missing = missing(programs)?;
    if missing.is_empty() {
        return Ok(());
    }
    // Stays where a build ends early: the next one goes on with it.
    let compiled = cache::folder("go-build")?;
    for program in missing {
        build(program, &compiled, progress)?;
    }
    fs::remove_dir_all(&compiled).with_context(|| format!("remove {}", compiled.display()))
}

fn missing<'a>(programs: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut missing = Vec::new();
    for program in programs {
        if from_assets(program).is_none() && !cached(find(program)?.0, program)?.exists() {
            missing.push(*program);
        }
    }
    Ok(missing)
}

fn from_assets(program: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS")?;
    Some(PathBuf::from(assets).join(program)).filter(|path| path.exists())
}

fn find(program: &str) -> Result<(&'static Module, &'static str)> {
    for module in &MODULES {
        if let Some((_, package)) = module.programs.iter().find(|(name, _)| *name == program) {
            return Ok((module, package));
        }
    }
    bail!("no Go module of xtask/go builds {program}")
}

fn source(module: &Module) -> PathBuf {
    cache::workspace().join("xtask/go").join(module.folder)
}

fn cached(module: &Module, program: &str) -> Result<PathBuf> {
    // Whatever changes the program changes the folder, so that it is built again.
    let tags = if module.tags.is_empty() {
        String::new()
    } else {
        format!("-{}", module.tags)
    };
    let folder = format!("{}-{}{tags}", module.folder, version_of(module)?);
    Ok(cache::root()?.join("bin").join(folder).join(program))
}

fn version_of(module: &Module) -> Result<String> {
    let path = source(module).join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    required_version(&text, module.versioned)
        .with_context(|| format!("{} requires no version of {}", path.display(), module.versioned))
}

fn required_version(go_mod: &str, module: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next() == Some(module))
            .then(|| words.next())
            .flatten()
            .map(str::to_owned)
    })
}

fn linker_flags(module: &Module, version: &str) -> String {
    let minor = version.split('.').nth(1).unwrap_or_default();
    format!(
        "-s -w {}",
        module.linker.replace("{v}", version).replace("{minor}", minor)
    )
}

fn build(program: &str, compiled: &Path, progress: &Progress) -> Result<()> {
    let (module, package) = find(program)?;
    let version = version_of(module)?;
    let step = progress.step(format!("build {program} {version} with Go"));
    let target = cached(module, program)?;
    let folder = target.parent().context("a cached program lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    // Built aside and renamed, so that a program in the cache is always whole.
    let aside = folder.join(format!(".{program}.{}", std::process::id()));
    let mut command = Command::new("go");
    command
        .current_dir(source(module))
        .env("GOCACHE", compiled)
        .env("CGO_ENABLED", if module.cgo { "1" } else { "0" });
    command.args([
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        &linker_flags(module, &version),
        "-tags",
        module.tags,
        "-o",
    ]);
    process::read_shown(command.arg(&aside).arg(package), &step).with_context(|| {
        format!(
            "build {program}: Go 1.26 or newer and its module proxy are needed{}",
            cgo_hint(module)
        )
    })?;
    fs::rename(&aside, &target).with_context(|| format!("rename {}", aside.display()))?;
    step.done("");
    Ok(())
}

fn cgo_hint(module: &Module) -> &'static str {
    if module.cgo {
        ", and the Debian packages gcc, libseccomp-dev and pkg-config"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_pins_its_version_and_names_its_programs_as_tools() {
        for module in &MODULES {
            let version = version_of(module).unwrap();
            assert!(version.starts_with('v'), "{}: {version}", module.folder);
            let go_mod = fs::read_to_string(source(module).join("go.mod")).unwrap();
            for (program, package) in module.programs {
                assert!(
                    go_mod
                        .lines()
                        .any(|line| line.split_whitespace().next_back() == Some(package)),
                    "{program}"
                );
            }
            assert!(source(module).join("go.sum").exists());
        }
    }

    #[test]
    fn versions_are_read_from_both_forms_of_require() {
        check("require a.b/c v1.2.3\n", "a.b/c", Some("v1.2.3"));
        check("require (\n\ta.b/c v1.2.3 // indirect\n)\n", "a.b/c", Some("v1.2.3"));
        check("require a.b/cd v1.2.3\n", "a.b/c", None);
        check("replace a.b/d => a.b/c v1.2.3\n", "a.b/c", None);
    }

    fn check(go_mod: &str, module: &str, expected: Option<&str>) {
        assert_eq!(required_version(go_mod, module).as_deref(), expected, "{go_mod}");
    }

    #[test]
    fn the_api_server_learns_its_version() {
        let (module, _) = find("kube-apiserver").unwrap();
        let flags = linker_flags(module, "v1.36.3");
        assert!(
            flags.contains("gitVersion=v1.36.3") && flags.contains("gitMinor=36"),
            "{flags}"
        );
    }

    #[test]
    fn an_unknown_program_is_an_error() {
        assert!(
            path("no-such-program")
                .unwrap_err()
                .to_string()
                .contains("no-such-program")
        );
    }
}
