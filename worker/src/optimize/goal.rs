//! How many products to raise until a candidate is alike enough. Decides numbers of tries; never which products are the worst.

/// What was settled on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Settled {
    /// Products to raise.
    pub(super) count: usize,
    /// What was measured with so many.
    pub(super) likeness: f64,
}

impl Settled {
    /// In words, for a goal and as many as may be raised.
    pub(super) fn told(self, goal: f64, most: usize) -> String {
        let Self { count, likeness } = self;
        let verdict = if likeness >= goal { "reaches" } else { "misses" };
        format!("likeness {likeness:.6} with {count} of at most {most} products raised {verdict} the goal of {goal}")
    }
}

/// The fewest products, of at most `most`, with which `measure` gives at least `goal`; the best that was seen where none does.
///
/// Supposes that more is not worse, and measures what it gives: a bisection.
pub(super) fn fewest<E>(
    goal: f64,
    most: usize,
    mut measure: impl FnMut(usize) -> Result<f64, E>,
) -> Result<Settled, E> {
    let mut at = |count| {
        Ok(Settled {
            count,
            likeness: measure(count)?,
        })
    };
    let none = at(0)?;
    if none.likeness >= goal || most == 0 {
        return Ok(none);
    }
    let mut enough = at(most)?;
    if enough.likeness < goal {
        return Ok(if enough.likeness > none.likeness { enough } else { none });
    }
    let mut short = 0;
    while enough.count - short > 1 {
        let middle = at(short.midpoint(enough.count))?;
        if middle.likeness >= goal {
            enough = middle;
        } else {
            short = middle.count;
        }
    }
    Ok(enough)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    fn settle(goal: f64, values: &[f64]) -> (Settled, usize) {
        let mut tries = 0;
        let settled = fewest::<Infallible>(goal, values.len() - 1, |count| {
            tries += 1;
            Ok(values[count])
        });
        (settled.unwrap(), tries)
    }

    #[test]
    fn the_best_is_kept_when_the_goal_is_missed() {
        for (values, count) in [(vec![0.9, 0.95, 0.97], 2), (vec![0.9, 0.95, 0.8], 0), (vec![0.9], 0)] {
            assert_eq!(settle(0.99, &values).0.count, count, "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn the_fewest_that_do_are_found_in_few_tries(mut values in proptest::collection::vec(0.0_f64..1.0, 2..70), goal in 0.0_f64..1.0) {
            values.sort_by(f64::total_cmp);
            let (settled, tries) = settle(goal, &values);
            let first = values.iter().position(|value| *value >= goal).unwrap_or(values.len() - 1);
            prop_assert_eq!(values[settled.count].to_bits(), values[first].to_bits());
            prop_assert!(tries <= 9);
        }
    }
}
