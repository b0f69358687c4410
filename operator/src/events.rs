//! Events: published on transitions only, after the status was written. Decides nothing.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};

/// Something that happened, as plans describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Warning, or normal.
    pub warning: bool,
    /// A reason of [`assayer_crds::conditions`].
    pub reason: &'static str,
    /// What the operator did, imperative: `StartWorker`.
    pub action: &'static str,
    /// One sentence.
    pub message: String,
}

impl Note {
    /// A normal event.
    pub fn normal(reason: &'static str, action: &'static str, message: impl Into<String>) -> Self {
        Self {
            warning: false,
            reason,
            action,
            message: message.into(),
        }
    }

    /// A warning.
    pub fn warning(reason: &'static str, action: &'static str, message: impl Into<String>) -> Self {
        Self {
            warning: true,
            reason,
            action,
            message: message.into(),
        }
    }
}

/// Publishes `notes` about `object`. An event that can't be written is logged: it never stops the work.
pub async fn publish(recorder: &Recorder, object: &ObjectReference, notes: &[Note]) {
    for note in notes {
        let event = Event {
            type_: if note.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason.to_owned(),
            note: Some(note.message.chars().take(1_000).collect()),
            action: note.action.to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, object).await {
            tracing::warn!(%error, reason = note.reason, "could not publish an event");
        }
    }
}
