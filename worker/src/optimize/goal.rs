//! How many steps of raising precision to take until a candidate is alike enough. Decides numbers of tries; never what is the worst.

/// What was settled on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Settled<T> {
    /// Steps to take.
    pub(super) count: usize,
    /// What was measured with so many.
    pub(super) likeness: f64,
    /// What was made with so many.
    pub(super) made: T,
}

impl<T> Settled<T> {
    /// In words, for a goal and as many as may be taken.
    pub(super) fn told(&self, goal: f64, most: usize) -> String {
        let Self { count, likeness, .. } = self;
        let verdict = if *likeness >= goal { "reaches" } else { "misses" };
        format!("likeness {likeness:.6} after {count} of at most {most} steps {verdict} the goal of {goal}")
    }
}

/// The fewest steps, of at most `most`, with which what `attempt` makes has a likeness of at least `goal`; the best that was made where
/// none does.
///
/// Supposes that more is not worse, and measures what it gives: a bisection. Of what was made, two are kept at a time.
pub(super) fn fewest<T, E>(
    goal: f64,
    most: usize,
    mut attempt: impl FnMut(usize) -> Result<(T, f64), E>,
) -> Result<Settled<T>, E> {
    let mut at = |count| {
        let (made, likeness) = attempt(count)?;
        Ok(Settled { count, likeness, made })
    };
    let none = at(0)?;
    if none.likeness >= goal || most == 0 {
        return Ok(none);
    }
    let mut enough = at(most)?;
    if enough.likeness < goal {
        return Ok(if enough.likeness > none.likeness { enough } else { none });
    }
    drop(none);
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

    fn settle(goal: f64, values: &[f64]) -> (Settled<usize>, usize) {
        let mut tries = 0;
        let settled = fewest::<_, Infallible>(goal, values.len() - 1, |count| {
            tries += 1;
            Ok((count, values[count]))
        });
        (settled.unwrap(), tries)
    }

    #[test]
    fn the_best_is_kept_when_the_goal_is_missed() {
        for (values, count) in [(vec![0.9, 0.95, 0.97], 2), (vec![0.9, 0.95, 0.8], 0), (vec![0.9], 0)] {
            let (settled, _) = settle(0.99, &values);
            assert_eq!((settled.count, settled.made), (count, count), "{values:?}");
        }
    }

    proptest! {
        #[test]
        fn the_fewest_that_do_are_found_in_few_tries(mut values in proptest::collection::vec(0.0_f64..1.0, 2..70), goal in 0.0_f64..1.0) {
            values.sort_by(f64::total_cmp);
            let (settled, tries) = settle(goal, &values);
            let first = values.iter().position(|value| *value >= goal).unwrap_or(values.len() - 1);
            prop_assert_eq!(values[settled.count].to_bits(), values[first].to_bits());
            prop_assert_eq!(settled.made, settled.count);
            prop_assert!(tries <= 9);
        }
    }
}
