//! Tables for approvals and rejections.

use super::*;
use crate::promotion::fixtures;

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

fn promotion(annotations: &[(&str, &str)]) -> ModelPromotion {
    let mut promotion = fixtures::promotion();
    promotion.metadata.annotations = Some(
        annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    );
    promotion
}

fn required(places: &[(&str, u32)]) -> Vec<RequiredApproval> {
    places
        .iter()
        .map(|(role, count)| RequiredApproval {
            role: (*role).to_owned(),
            count: *count,
        })
        .collect()
}

fn approved(seat: &str, user: &str, groups: &str) -> Vec<(String, String)> {
    vec![
        (format!("{APPROVE}{seat}"), DIGEST.to_owned()),
        (format!("{APPROVED_BY}{seat}"), user.to_owned()),
        (format!("{APPROVER_GROUPS}{seat}"), groups.to_owned()),
    ]
}

/// A promotion that alice asked for, with these approvals `(seat, user)`.
fn with(seats: &[(&str, &str)]) -> ModelPromotion {
    let mut annotations = vec![(REQUESTED_BY.to_owned(), "alice".to_owned())];
    for (seat, user) in seats {
        annotations.extend(approved(seat, user, "system:authenticated"));
    }
    let mut promotion = promotion(&[]);
    promotion.metadata.annotations = Some(annotations.into_iter().collect());
    promotion
}

type Defect<'a> = (usize, Option<(&'a str, &'a str)>, &'a str);

#[test]
fn each_defect_keeps_an_approval_from_counting_and_says_so() {
    let good = [
        (REQUESTED_BY, "alice"),
        ("approve.assayer.dev/security", DIGEST),
        ("approved-by.assayer.dev/security", "bob"),
        ("approver-groups.assayer.dev/security", "sre,system:authenticated"),
    ];
    let asked = required(&[("security", 1)]);
    let tally_of = |annotations: &[(&str, &str)]| tally(&promotion(annotations), DIGEST, &asked);
    assert!(tally_of(&good).complete());
    let other = DIGEST.replace('1', "2");
    let defects: [Defect<'_>; 9] = [
        (0, None, "nobody knows who asked"),
        (0, Some((REQUESTED_BY, "")), "nobody knows who asked"),
        (0, Some((REQUESTED_BY, "bob")), "can't approve it"),
        (1, Some(("approve.assayer.dev/security", &other)), "approve again"),
        (1, Some(("approve.assayer.dev/Security", DIGEST)), "not a role"),
        (2, None, "nobody knows who set it"),
        (
            2,
            Some(("approved-by.assayer.dev/security", "system:serviceaccount:ml:bot")),
            "a machine",
        ),
        (3, None, "groups are not known"),
        (
            3,
            Some(("approver-groups.assayer.dev/security", "sre,file-security")),
            "owns the model",
        ),
    ];
    for (index, replacement, words) in defects {
        let mut annotations: Vec<_> = good.to_vec();
        match replacement {
            Some(other) => annotations[index] = other,
            None => {
                annotations.remove(index);
            }
        }
        let tally = tally_of(&annotations);
        assert!(!tally.complete() && tally.counted.is_empty(), "{words}");
        assert!(
            tally.refused.iter().any(|why| why.contains(words)),
            "{:?} should say {words}",
            tally.refused
        );
    }
}

#[test]
fn people_are_distinct_and_seated_as_well_as_can_be() {
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, u32)], &'a [(&'a str, u32)]);
    let cases: [Case<'_>; 8] = [
        (&[], &[], &[]),
        (&[], &[("security", 2)], &[("security", 2)]),
        (&[("security", "bob")], &[("security", 2)], &[("security", 1)]),
        (
            &[("security", "bob"), ("security.2", "bob")],
            &[("security", 2)],
            &[("security", 1)],
        ),
        (&[("security", "bob"), ("security.2", "carl")], &[("security", 2)], &[]),
        (
            &[("security", "bob"), ("ml", "bob")],
            &[("security", 1), ("ml", 1)],
            &[("ml", 1)],
        ),
        // bob may sit in both roles, carl only in security: both places can be filled.
        (
            &[("ml", "bob"), ("security", "bob"), ("security.2", "carl")],
            &[("security", 1), ("ml", 1)],
            &[],
        ),
        (&[("legal", "bob")], &[("security", 1)], &[("security", 1)]),
    ];
    for (seats, asked, missing) in cases {
        let tally = tally(&with(seats), DIGEST, &required(asked));
        let places: u32 = asked.iter().map(|(_, count)| count).sum();
        let left: u32 = tally.missing.iter().map(|place| place.count).sum();
        let expected: u32 = missing.iter().map(|(_, count)| count).sum();
        assert_eq!(left, expected, "{seats:?} for {asked:?}: {:?}", tally.missing);
        assert_eq!(u32::try_from(tally.counted.len()).unwrap(), places - left);
        let people: BTreeSet<_> = tally.counted.iter().map(|approval| &approval.user).collect();
        assert_eq!(people.len(), tally.counted.len());
    }
}

#[test]
fn seats_that_do_not_count_say_why_and_a_surplus_is_no_mistake() {
    let twice = tally(
        &with(&[("security", "bob"), ("security.2", "bob")]),
        DIGEST,
        &required(&[("security", 2)]),
    );
    assert!(twice.refused[0].contains("each person counts once"));
    let foreign = tally(&with(&[("legal", "bob")]), DIGEST, &required(&[("security", 1)]));
    assert!(foreign.refused[0].contains("asks for no approval as legal"));
    let surplus = tally(
        &with(&[("security", "bob"), ("security.2", "carl")]),
        DIGEST,
        &required(&[("security", 1)]),
    );
    assert!(surplus.complete() && surplus.refused.is_empty());
}

#[test]
fn rejections_count_when_a_person_names_this_request() {
    let good = [
        ("reject.assayer.dev/security", DIGEST),
        ("rejected-by.assayer.dev/security", "bob"),
        ("approve-reason.assayer.dev/security", "fails\non ZIP"),
    ];
    let found = tally(&promotion(&good), DIGEST, &[]);
    assert_eq!(found.rejections[0].user, "bob");
    assert_eq!(found.rejections[0].reason, "failson ZIP");
    for (index, replacement) in [
        (0, ("reject.assayer.dev/security", "sha256:2")),
        (1, ("rejected-by.assayer.dev/security", "system:admin")),
        (1, ("x", "bob")),
    ] {
        let mut annotations = good;
        annotations[index] = replacement;
        let tally = tally(&promotion(&annotations), DIGEST, &[]);
        assert!(
            tally.rejections.is_empty() && tally.refused.len() == 1,
            "{replacement:?}"
        );
    }
}

#[test]
fn groups_with_commas_in_their_names_are_found() {
    assert!(owns("a,b,c", "b") && owns("a,b,c", "a,b") && owns("b", "b"));
    assert!(!owns("ab,c", "b") && !owns("", "b"));
}

proptest::proptest! {
    /// Whatever the annotations say, nobody counts who must not.
    #[test]
    fn nobody_counts_who_must_not(
        seats in proptest::collection::vec(("(security|ml|legal)(\\.[2-4])?", "(alice|bob|carl|system:x|)", "(sre|file-security|)", proptest::bool::ANY), 0..8),
        security in 0u32..3, ml in 0u32..3,
    ) {
        let mut annotations = vec![(REQUESTED_BY.to_owned(), "alice".to_owned())];
        for (seat, user, groups, current) in &seats {
            annotations.extend(approved(seat, user, groups));
            if !current {
                annotations.push((format!("{APPROVE}{seat}"), "sha256:old".to_owned()));
            }
        }
        let mut promotion = promotion(&[]);
        promotion.metadata.annotations = Some(annotations.into_iter().collect());
        let asked: Vec<_> = required(&[("security", security), ("ml", ml)]).into_iter().filter(|r| r.count > 0).collect();
        let tally = tally(&promotion, DIGEST, &asked);
        let mut people = BTreeSet::new();
        for approval in &tally.counted {
            let annotations = promotion.annotations();
            proptest::prop_assert_eq!(&annotations[&format!("{APPROVE}{}", approval.seat)], DIGEST);
            proptest::prop_assert_ne!(&annotations[&format!("{APPROVER_GROUPS}{}", approval.seat)], "file-security");
            proptest::prop_assert!(["bob", "carl"].contains(&approval.user.as_str()));
            proptest::prop_assert!(people.insert(approval.user.clone()));
            proptest::prop_assert!(asked.iter().any(|r| r.role == approval.role));
        }
        let places: u32 = asked.iter().map(|place| place.count).sum();
        let left: u32 = tally.missing.iter().map(|place| place.count).sum();
        proptest::prop_assert_eq!(u32::try_from(tally.counted.len()).unwrap() + left, places);
    }
}
