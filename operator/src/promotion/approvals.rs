//! Who said yes or no, as the annotations tell it, and what of it counts.
//!
//! Pure. Each annotation is judged again although admission has seen it already: it must name this very request, carry the stamp of a
//! person, and come from neither the requester nor the owner's group. Everything that is missing is a reason not to count.

use std::collections::{BTreeMap, BTreeSet};

use assayer_crds::ModelPromotion;
use assayer_crds::names::{
    APPROVE, APPROVE_REASON, APPROVED_BY, APPROVER_GROUPS, REJECT, REJECTED_BY, REQUESTED_BY, role_of,
};
use assayer_crds::policy::RequiredApproval;
use kube::ResourceExt as _;

/// An approval that may count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// Annotation suffix: the role, and a number for a further seat.
    pub seat: String,
    /// Role.
    pub role: String,
    /// Who gave it.
    pub user: String,
    /// Why, in his words.
    pub reason: String,
}

/// A rejection of this very request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Role.
    pub role: String,
    /// Who said no.
    pub user: String,
    /// Why, in his words.
    pub reason: String,
}

/// What the annotations say about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Approvals that fill a place that the tier asks for: each person once.
    pub counted: Vec<Approval>,
    /// Annotations that do not count, each with the reason why, as one sentence.
    pub refused: Vec<String>,
    /// Rejections of the request.
    pub rejections: Vec<Rejection>,
    /// Places that nobody fills yet, by role.
    pub missing: Vec<RequiredApproval>,
}

impl Tally {
    /// Whether the sign-off is complete.
    pub fn complete(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Longest free text that is taken over into the status.
const MAX_REASON: usize = 512;

fn annotation<'a>(promotion: &'a ModelPromotion, prefix: &str, seat: &str) -> Option<&'a str> {
    promotion
        .annotations()
        .get(&format!("{prefix}{seat}"))
        .map(String::as_str)
        .filter(|text| !text.is_empty())
}

fn reason(promotion: &ModelPromotion, seat: &str) -> String {
    let text = annotation(promotion, APPROVE_REASON, seat).unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(MAX_REASON).collect()
}

fn is_machine(user: &str) -> bool {
    user.starts_with("system:")
}

/// Whether `owner` is one of `groups` (joined with commas). A group whose own name has commas is found as well.
fn owns(groups: &str, owner: &str) -> bool {
    format!(",{groups},").contains(&format!(",{owner},"))
}

/// Judges every approval and rejection of `promotion` against `request` (a digest) and `required`.
pub fn tally(promotion: &ModelPromotion, request: &str, required: &[RequiredApproval]) -> Tally {
    let mut tally = Tally::default();
    let mut holding = Vec::new();
    for (key, named) in promotion.annotations() {
        if let Some(seat) = key.strip_prefix(APPROVE) {
            match approval(promotion, seat, named, request) {
                Ok(approval) => holding.push(approval),
                Err(why) => tally.refused.push(why),
            }
        } else if let Some(seat) = key.strip_prefix(REJECT) {
            match rejection(promotion, seat, named, request) {
                Ok(rejection) => tally.rejections.push(rejection),
                Err(why) => tally.refused.push(why),
            }
        }
    }
    let (counted, missing) = seat(&holding, required);
    let people: BTreeSet<&str> = counted.iter().map(|index| holding[*index].user.as_str()).collect();
    for (index, Approval { seat, user, role, .. }) in holding.iter().enumerate() {
        if counted.contains(&index) {
            continue;
        }
        // An approval beyond the count that the tier asks for is no mistake: it is neither counted nor complained about.
        if !required.iter().any(|place| place.role == *role) {
            tally.refused.push(format!(
                "{APPROVE}{seat} by {user}: the tier asks for no approval as {role}"
            ));
        } else if people.contains(user.as_str()) {
            tally
                .refused
                .push(format!("{APPROVE}{seat} by {user}: each person counts once"));
        }
    }
    tally.counted = counted.iter().map(|index| holding[*index].clone()).collect();
    tally.missing = missing;
    tally
}

fn approval(promotion: &ModelPromotion, seat: &str, named: &str, request: &str) -> Result<Approval, String> {
    let key = format!("{APPROVE}{seat}");
    let role = role_of(seat)
        .ok_or_else(|| format!("{key}: `{seat}` is not a role: [a-z0-9-]{{1,50}}, further seats .2 to .99"))?;
    let user = annotation(promotion, APPROVED_BY, seat)
        .ok_or_else(|| format!("{key}: nobody knows who set it ({APPROVED_BY}{seat} is missing)"))?;
    if named != request {
        let shown: String = named.chars().take(80).collect();
        return Err(format!(
            "{key} by {user} names {shown}, the request is {request}: the spec, the evidence, a policy or the admission policies have changed since, so approve again"
        ));
    }
    if is_machine(user) {
        return Err(format!("{key} by {user}: a machine is not a person"));
    }
    let requester = promotion
        .annotations()
        .get(REQUESTED_BY)
        .map(String::as_str)
        .filter(|text| !text.is_empty())
        .ok_or_else(|| format!("{key} by {user}: nobody knows who asked for the change ({REQUESTED_BY} is missing): write the spec again"))?;
    if user == requester {
        return Err(format!("{key} by {user}: whoever asks for a change can't approve it"));
    }
    let groups = annotation(promotion, APPROVER_GROUPS, seat)
        .ok_or_else(|| format!("{key} by {user}: the groups are not known ({APPROVER_GROUPS}{seat} is missing)"))?;
    let owner = &promotion.spec.owner.group;
    if owns(groups, owner) {
        return Err(format!(
            "{key} by {user}: group {owner} owns the model and can't approve its change"
        ));
    }
    Ok(Approval {
        seat: seat.to_owned(),
        role: role.to_owned(),
        user: user.to_owned(),
        reason: reason(promotion, seat),
    })
}

fn rejection(promotion: &ModelPromotion, seat: &str, named: &str, request: &str) -> Result<Rejection, String> {
    let key = format!("{REJECT}{seat}");
    let role = role_of(seat)
        .ok_or_else(|| format!("{key}: `{seat}` is not a role: [a-z0-9-]{{1,50}}, further seats .2 to .99"))?;
    let user = annotation(promotion, REJECTED_BY, seat)
        .ok_or_else(|| format!("{key}: nobody knows who set it ({REJECTED_BY}{seat} is missing)"))?;
    if named != request {
        let shown: String = named.chars().take(80).collect();
        return Err(format!("{key} by {user} names {shown}, the request is {request}"));
    }
    if is_machine(user) {
        return Err(format!("{key} by {user}: a machine is not a person"));
    }
    Ok(Rejection {
        role: role.to_owned(),
        user: user.to_owned(),
        reason: reason(promotion, seat),
    })
}

/// Fills the places that `required` asks for with distinct people, as many as can be: somebody who may sit in two roles never keeps
/// another one out. Returns the indices that count, and the places left over.
fn seat(holding: &[Approval], required: &[RequiredApproval]) -> (BTreeSet<usize>, Vec<RequiredApproval>) {
    let places: Vec<&str> = required
        .iter()
        .flat_map(|place| (0..place.count).map(|_| place.role.as_str()))
        .collect();
    // Augmenting paths: which approval sits in which place, people never twice.
    let mut sitting: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for place in 0..places.len() {
        augment(place, &places, holding, &mut sitting, &mut BTreeSet::new());
    }
    let taken: BTreeSet<usize> = sitting.values().map(|(place, _)| *place).collect();
    let mut missing: Vec<RequiredApproval> = Vec::new();
    for (_, role) in places.iter().enumerate().filter(|(place, _)| !taken.contains(place)) {
        match missing.iter_mut().find(|left| left.role == *role) {
            Some(left) => left.count += 1,
            None => missing.push(RequiredApproval {
                role: (*role).to_owned(),
                count: 1,
            }),
        }
    }
    (sitting.values().map(|(_, index)| *index).collect(), missing)
}

fn augment<'a>(
    place: usize,
    places: &[&str],
    holding: &'a [Approval],
    sitting: &mut BTreeMap<&'a str, (usize, usize)>,
    tried: &mut BTreeSet<&'a str>,
) -> bool {
    for (index, approval) in holding.iter().enumerate() {
        let user = approval.user.as_str();
        if approval.role != places[place] || !tried.insert(user) {
            continue;
        }
        let free = match sitting.get(user).copied() {
            None => true,
            Some((other, _)) => augment(other, places, holding, sitting, tried),
        };
        if free {
            sitting.insert(user, (place, index));
            return true;
        }
    }
    false
}

#[cfg(test)]
#[path = "approvals_tests.rs"]
mod tests;
