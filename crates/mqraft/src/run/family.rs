//! Which processes are our children, and how to be rid of them.
//!
//! A process that is a *subreaper* becomes the parent of every descendant whose own parent has
//! died. So whoever leaves the process group, or even the session, of the command is still found: it
//! becomes a child at the latest when those between are dead. Only children are signalled: the pid
//! of a child is not given to another process before its parent has reaped it.

use std::fs;
use std::io;

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, kill_process, set_child_subreaper,
    waitid,
};

/// A child of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) group: Pid,
}

/// Makes every orphan below this process its child.
///
/// # Errors
/// On a kernel before Linux 3.4.
pub(crate) fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// All children, dead ones that nobody has reaped included. A list without a name on it means that
/// there was no descendant at all when the look began: a child stays in it until it is reaped, and
/// each descendant stands below one.
///
/// # Errors
/// When `/proc` is not there.
pub(crate) fn children() -> io::Result<Vec<Child>> {
    let own = getpid();
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that is gone before it is read has been reaped, so it was none of ours.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        if let (Some(pid), Some((parent, group))) = (Pid::from_raw(pid), parent_and_group(&stat))
            && parent == own
        {
            children.push(Child { pid, group });
        }
    }
    Ok(children)
}

/// The fourth and fifth field; the second is the program's name, in which anything may stand.
fn parent_and_group(stat: &str) -> Option<(Pid, Pid)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(1);
    let mut pid = || Pid::from_raw(fields.next()?.parse().ok()?);
    Some((pid()?, pid()?))
}

/// How a child ended, once it has; it is not reaped.
pub(crate) fn exited(pid: Pid) -> Option<u8> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::Pid(pid), options).ok()??;
    Some(code(&status))
}

/// Whether any child has ended and is not reaped yet.
pub(crate) fn any_exited() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(waitid(WaitId::All, options), Ok(Some(_)))
}

/// Reaps a child that has ended; false if it has not.
pub(crate) fn reap(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    matches!(waitid(WaitId::Pid(pid), options), Ok(Some(_)))
}

/// Signals a child. It may have ended, and one that has become another user may refuse.
pub(crate) fn signal(child: Child, signal: Signal) {
    let _ = kill_process(child.pid, signal);
}

/// As a shell says it: the exit code, or 128 and the number of the signal.
fn code(status: &WaitIdStatus) -> u8 {
    let code = match status.terminating_signal() {
        Some(signal) => 128 + signal,
        None => status.exit_status().unwrap_or_default(),
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_stands_behind_any_name() {
        let pid = |raw| Pid::from_raw(raw).unwrap();
        let stat = "7 (a) S 1 (b) R 41 42 43 0 -1";
        assert_eq!(parent_and_group(stat), Some((pid(41), pid(42))));
        assert_eq!(parent_and_group("7 (init) S 0 0 0"), None);
        assert_eq!(parent_and_group(""), None);
    }
}
