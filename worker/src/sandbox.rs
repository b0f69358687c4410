//! What a process that loads a model can no longer do: sockets, tracing, mounts, new programs.
//!
//! Decides the system calls that ONNX Runtime never needs and a hijacked one would. They fail with `EPERM`, so that an
//! honest library that merely tries goes on. Files are bounded by the container's mounts, not here.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

use crate::failure::{Failure, bug};

/// How much is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// For the process that starts the ones that load models: no sockets, no tracing, no mounts, no kernel interfaces.
    Parent,
    /// For a process that loads a model: besides that, no new program and no signal to another process.
    Model,
}

/// Network, other processes' memory, namespaces and mounts, keys, kernel interfaces, clocks.
const NEVER: &[i64] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
];

/// What only a process with a model gives up.
const NEVER_WITH_A_MODEL: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
];

/// `CLONE_NEW*`: namespaces of one's own.
const NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Gives up rights for good, in every thread of this process and in all that it starts.
pub(crate) fn enter(level: Level) -> Result<(), Failure> {
    for program in programs(level).map_err(|error| bug(format!("sandbox: {error}")))? {
        // Also sets no_new_privs, without which a filter could not be installed.
        apply_filter_all_threads(&program)
            .map_err(|error| bug(format!("sandbox: the kernel refuses the seccomp filter: {error}")))?;
    }
    Ok(())
}

fn programs(level: Level) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    let mut denied: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let with_a_model = if level == Level::Model { NEVER_WITH_A_MODEL } else { &[] };
    for &call in NEVER.iter().chain(with_a_model) {
        denied.insert(call, Vec::new());
    }
    let namespaces = NAMESPACES.iter().map(|&flag| {
        let flag = u64::from(flag.unsigned_abs());
        SeccompRule::new(vec![SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(flag),
            flag,
        )?])
    });
    denied.insert(libc::SYS_clone, namespaces.collect::<Result<_, _>>()?);
    if level == Level::Model {
        let me = u64::from(std::process::id());
        let others = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, me)?;
        // `abort` signals this very process and must work.
        denied.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![others])?]);
    }
    // clone3 hides its flags in memory; without it the C library falls back to clone, whose flags are visible.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([filter(denied, libc::EPERM)?, filter(clone3, libc::ENOSYS)?])
}

fn filter(
    mut denied: BTreeMap<i64, Vec<SeccompRule>>,
    errno: libc::c_int,
) -> Result<BpfProgram, seccompiler::BackendError> {
    if cfg!(target_arch = "x86_64") {
        // The same calls by their x32 numbers, which kernels with that interface accept from any program.
        const X32: i64 = 0x4000_0000;
        let twins: Vec<_> = denied.iter().map(|(call, rules)| (call | X32, rules.clone())).collect();
        denied.extend(twins);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(
        denied,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        arch,
    )?
    .try_into()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::process::Command;

    use super::*;

    /// Runs `check` in a thread that gave up its rights (only that thread, so that other tests keep theirs).
    fn inside(level: Level, check: impl FnOnce() + Send + 'static) {
        let sandboxed = std::thread::spawn(move || {
            for program in programs(level).unwrap() {
                seccompiler::apply_filter(&program).unwrap();
            }
            check();
        });
        sandboxed.join().unwrap();
    }

    #[test]
    fn sockets_are_gone_and_files_and_threads_stay() {
        inside(Level::Parent, || {
            assert_eq!(
                TcpListener::bind("127.0.0.1:0").unwrap_err().raw_os_error(),
                Some(libc::EPERM)
            );
            assert_eq!(
                UdpSocket::bind("127.0.0.1:0").unwrap_err().raw_os_error(),
                Some(libc::EPERM)
            );
            assert_eq!(
                std::os::unix::net::UnixStream::pair().unwrap_err().raw_os_error(),
                Some(libc::EPERM)
            );
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), "x").unwrap();
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            assert!(
                Command::new("true").status().unwrap().success(),
                "the parent starts children"
            );
        });
    }

    #[test]
    fn a_process_with_a_model_starts_nothing() {
        inside(Level::Model, || {
            assert_eq!(
                Command::new("true").status().unwrap_err().raw_os_error(),
                Some(libc::EPERM)
            );
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
        });
    }

    #[test]
    fn children_inherit_it() {
        inside(Level::Parent, || {
            let python = "import socket; socket.socket()";
            let Ok(output) = Command::new("python3").args(["-c", python]).output() else {
                return;
            };
            assert!(
                String::from_utf8_lossy(&output.stderr).contains("PermissionError"),
                "{output:?}"
            );
        });
    }
}
