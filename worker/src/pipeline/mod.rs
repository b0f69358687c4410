//! The containers of a worker job, one file a role.
//!
//! Decides which role does what with which folder; the work itself is in the rooms beside this one. Each role sees only
//! what its container mounts: whoever loads a model sees no label and no credential.

mod optimize;
mod publish;
mod recipe;
mod stage;
mod techniques;

use std::future::Future;
use std::path::Path;

use assayer_crds::contract::{Outcome, Role, Runtime, Work, WorkerPlan};

use crate::deadline::Start;
use crate::failure::{Failure, Result, bug, reasons, refused};
use crate::layout::Layout;
use crate::run::Program;
use crate::storage::{Access, Credentials};
use crate::{run, score};

/// What a role has to say when it is done: only the last container of a job reports.
pub type Done = Option<(Runtime, Outcome)>;

/// Does the part of `role` in the plan's work.
pub fn perform(role: Role, plan: &WorkerPlan, layout: &Layout, program: &Program) -> Result<Done> {
    match (role, &plan.work) {
        (Role::Stage, Work::Make(make)) => {
            stage::make(make, layout, &access(plan, &layout.pull_secret())?).map(|()| None)
        }
        (Role::Stage, Work::Measure(measure)) => {
            stage::measure(measure, layout, &access(plan, &layout.pull_secret())?).map(|()| None)
        }
        (Role::Optimize, Work::Make(make)) => optimize::optimize(make, layout).map(|()| None),
        (Role::Publish, Work::Make(make)) => {
            let (runtime, published) = publish::publish(make, layout, &access(plan, &layout.push_secret())?)?;
            Ok(Some((runtime, Outcome::Made(published))))
        }
        (Role::Run, Work::Measure(measure)) => run::run(measure, layout, program).map(|()| None),
        (Role::Score, Work::Measure(measure)) => {
            let (note, measured) = score::score(measure, layout)?;
            Ok(Some((note.runtime, Outcome::Measured(measured))))
        }
        (role, Work::Make(_)) => Err(not_in(role, "make")),
        (role, Work::Measure(_)) => Err(not_in(role, "measure")),
    }
}

/// When the job's first container began, as far as this role can know.
pub fn started(role: Role, layout: &Layout) -> Start {
    match role {
        Role::Stage => Start::now(),
        Role::Optimize | Role::Run => Start::found(&layout.inputs()),
        Role::Publish => Start::found(&layout.out()),
        Role::Score => Start::found(&layout.labels()),
    }
}

fn not_in(role: Role, work: &str) -> Failure {
    refused(
        reasons::PLAN_INVALID,
        format!("`{}` is no part of a {work} plan", role.as_str()),
    )
}

fn access(plan: &WorkerPlan, secret: &Path) -> Result<Access> {
    let credentials = Credentials::from_folder(secret)?;
    Ok(Access {
        plain_http: plan.plain_http.clone(),
        credentials,
    })
}

/// Runs one future to its end; the roles are processes of their own and need no more than that.
fn block_on<T, E: Into<Failure>>(future: impl Future<Output = std::result::Result<T, E>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| bug(format!("no async runtime: {error}")))?;
    runtime.block_on(future).map_err(Into::into)
}

#[cfg(test)]
mod replay_tests;
