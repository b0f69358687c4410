//! By how much to divide each input of matrix products, so that 8 bits lose least. Knows numbers, never a graph.
//!
//! With factors `f`, the input becomes `x / f` and the weights `f W`. Rounding is uniform noise of a twelfth of a squared step (Widrow and
//! Kollár, 2008, chapter 4), so the products of rows with `mean x_c^2 = p_c` are expected to lose, up to that twelfth,
//! `(R / 255)^2 sum_c f_c^2 |W_c|^2 + (sum_c p_c / f_c^2) sum_j (max_c f_c |W_cj| / 127)^2`,
//! where the input's range is `R = max_c up_c / f_c + max_c down_c / f_c`. `SmoothQuant` (Xiao et al., 2022, arXiv:2211.10438) takes
//! `f_c = max|x_c|^a / max|W_c|^(1 - a)`; here the best `a` is where a descent along single factors begins.

use crate::calibrate::Ends;

/// Exponents that are tried: 0 only evens out the weights, 1 only the inputs.
const EXPONENTS: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// What a factor is multiplied by, tentatively.
const MOVES: [f64; 4] = [1.25, 0.8, 1.06, 0.94];
/// Shares of the range that are tried as its bound.
const SQUEEZES: [f64; 4] = [0.7, 0.8, 0.9, 0.95];
/// Passes over all factors.
const ROUNDS: usize = 4;
/// A channel is never divided or multiplied by more.
const LARGEST_FACTOR: f64 = 1e4;
/// Columns that are added up side by side; sums are of the same order on every machine.
const LANES: usize = 4;
/// Levels of an input's range, and of the magnitude of a weight.
const INPUT_LEVELS: f64 = 255.0;
const WEIGHT_LEVELS: f64 = 127.0;

/// Weights of all products that read one input, `[inputs, columns]`, as magnitudes.
pub(super) struct Weights {
    inputs: usize,
    columns: usize,
    magnitudes: Vec<f32>,
}

impl Weights {
    /// `matrices`: values and columns of each, one matrix beside the other.
    pub(super) fn new(inputs: usize, matrices: &[(Vec<f32>, usize)]) -> Self {
        let columns = matrices.iter().map(|(_, columns)| columns).sum();
        let rows = (0..inputs).flat_map(|input| {
            let row = move |columns: usize| input * columns..(input + 1) * columns;
            matrices
                .iter()
                .flat_map(move |matrix| matrix.0[row(matrix.1)].iter().map(|value| value.abs()))
        });
        Self {
            inputs,
            columns,
            magnitudes: rows.collect(),
        }
    }

    fn row(&self, input: usize) -> &[f32] {
        &self.magnitudes[input * self.columns..(input + 1) * self.columns]
    }
}

/// What is known of the products.
pub(super) struct Problem<'p> {
    /// How far inputs go.
    pub(super) ends: &'p Ends,
    /// Mean squares of the inputs.
    pub(super) squares: &'p [f64],
    /// The weights.
    pub(super) weights: &'p Weights,
    /// Share of the weights' error that is left by how they are rounded: 1 to the nearest.
    pub(super) left: f64,
}

/// The factors with the least expected error that was found, and that error as a share of what is lost without them.
pub(super) fn factors(problem: &Problem<'_>) -> Option<(Vec<f64>, f64)> {
    let size = problem.weights.inputs;
    let plain = State::new(problem, vec![1.0; size]).error();
    let largest: Vec<f64> = (0..size)
        .map(|input| f64::from(problem.weights.row(input).iter().fold(0.0_f32, |a, b| a.max(*b))))
        .collect();
    let start = EXPONENTS
        .iter()
        .map(|&exponent| {
            let factor = |channel: usize| {
                let (input, weight) = (
                    problem.ends.up[channel].max(problem.ends.down[channel]),
                    largest[channel],
                );
                if input > 0.0 && weight > 0.0 {
                    (input.powf(exponent) / weight.powf(1.0 - exponent)).clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
                } else {
                    1.0
                }
            };
            State::new(problem, (0..size).map(factor).collect())
        })
        .min_by(|left, right| left.error().total_cmp(&right.error()))?;
    let mut best = start;
    best.descend();
    for squeeze in SQUEEZES {
        let mut tried = State::new(problem, best.squeezed(squeeze));
        tried.descend();
        if tried.error() < best.error() {
            best = tried;
        }
    }
    let share = best.error() / plain;
    share.is_finite().then_some((best.factors, share))
}

/// Factors, with what the error is made of.
struct State<'p> {
    problem: &'p Problem<'p>,
    factors: Vec<f64>,
    /// `sum_c |W_c|^2` of each row.
    rows: Vec<f64>,
    /// `sum_c f_c^2 |W_c|^2`.
    noise: f64,
    /// `sum_c p_c / f_c^2`.
    power: f64,
    /// For each column the largest of `f_c |W_cj|`, and the second largest.
    first: Vec<f64>,
    second: Vec<f64>,
    /// `sum_j (max_c f_c |W_cj|)^2`.
    peaks: f64,
    /// The largest and the second largest of `up_c / f_c`, and of `down_c / f_c`.
    up: [f64; 2],
    down: [f64; 2],
}

/// Of numbers that are never NaN, which is sooner known than of all.
fn larger(one: f64, other: f64) -> f64 {
    if one > other { one } else { other }
}

fn smaller(one: f64, other: f64) -> f64 {
    if one < other { one } else { other }
}

/// The largest and the second largest.
fn largest(values: impl Iterator<Item = f64>) -> [f64; 2] {
    values.fold([0.0; 2], |[first, second], value| {
        [larger(first, value), larger(second, smaller(first, value))]
    })
}

impl<'p> State<'p> {
    fn new(problem: &'p Problem<'p>, factors: Vec<f64>) -> Self {
        let weights = problem.weights;
        let rows: Vec<f64> = (0..weights.inputs)
            .map(|input| weights.row(input).iter().map(|value| f64::from(*value).powi(2)).sum())
            .collect();
        let mut state = Self {
            problem,
            noise: rows
                .iter()
                .zip(&factors)
                .map(|(row, factor)| row * factor * factor)
                .sum(),
            power: problem
                .squares
                .iter()
                .zip(&factors)
                .map(|(square, factor)| square / (factor * factor))
                .sum(),
            first: vec![0.0; weights.columns],
            second: vec![0.0; weights.columns],
            peaks: 0.0,
            up: [0.0; 2],
            down: [0.0; 2],
            rows,
            factors,
        };
        for input in 0..weights.inputs {
            state.raise(input);
        }
        state.add_up();
        state
    }

    fn add_up(&mut self) {
        let (chunks, rest) = self.first.as_chunks::<LANES>();
        let mut lanes = [0.0; LANES];
        for chunk in chunks {
            for (lane, first) in lanes.iter_mut().zip(chunk) {
                *lane += first * first;
            }
        }
        self.peaks = lanes.iter().sum::<f64>() + rest.iter().map(|first| first * first).sum::<f64>();
        let reach = |ends: &[f64]| largest(ends.iter().zip(&self.factors).map(|(end, factor)| end / factor));
        (self.up, self.down) = (reach(&self.problem.ends.up), reach(&self.problem.ends.down));
    }

    /// Puts the weights of `input` among the largest of their columns.
    fn raise(&mut self, input: usize) {
        let factor = self.factors[input];
        let row = self.problem.weights.row(input);
        for ((first, second), value) in self.first.iter_mut().zip(&mut self.second).zip(row) {
            let value = f64::from(*value) * factor;
            *second = larger(*second, smaller(value, *first));
            *first = larger(*first, value);
        }
    }

    fn error(&self) -> f64 {
        self.total(self.up[0] + self.down[0], self.noise, self.power, self.peaks)
    }

    fn total(&self, range: f64, noise: f64, power: f64, peaks: f64) -> f64 {
        (range / INPUT_LEVELS).powi(2) * noise + self.problem.left * power * peaks / WEIGHT_LEVELS.powi(2)
    }

    /// Factors with which the input reaches at most `share` as far.
    fn squeezed(&self, share: f64) -> Vec<f64> {
        let Ends { up, down } = self.problem.ends;
        let (high, low) = (self.up[0] * share, self.down[0] * share);
        let least = |end: f64, bound: f64| if bound > 0.0 { end / bound } else { 0.0 };
        let factors = self.factors.iter().zip(up.iter().zip(down));
        factors
            .map(|(factor, (up, down))| factor.max(least(*up, high)).max(least(*down, low)).min(LARGEST_FACTOR))
            .collect()
    }

    /// Moves one factor after the other while that lowers the error.
    fn descend(&mut self) {
        for _ in 0..ROUNDS {
            let before = self.error();
            for input in 0..self.factors.len() {
                self.step(input);
            }
            if self.error() > 0.999 * before {
                break;
            }
        }
    }

    fn step(&mut self, input: usize) {
        let problem = self.problem;
        let old = self.factors[input];
        let end = |[first, second]: [f64; 2], end: f64, factor: f64| {
            let others = if end / old >= first { second } else { first };
            larger(others, end / factor)
        };
        let Ends { up, down } = problem.ends;
        let range = |factor| end(self.up, up[input], factor) + end(self.down, down[input], factor);
        let mut best = (self.total(range(old), self.noise, self.power, self.peaks), old);
        let moved = MOVES.map(|change| (old * change).clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR));
        for (new, peaks) in moved.into_iter().zip(self.peaks_with(input, moved)) {
            let noise = self.noise + self.rows[input] * (new * new - old * old);
            let power = self.power + problem.squares[input] * (1.0 / (new * new) - 1.0 / (old * old));
            let error = self.total(range(new), noise, power, peaks);
            if error < best.0 {
                best = (error, new);
            }
        }
        if best.1.to_bits() != old.to_bits() {
            self.set(input, best.1);
        }
    }

    /// What `peaks` would be with each of these factors for `input`.
    fn peaks_with(&self, input: usize, factors: [f64; MOVES.len()]) -> [f64; MOVES.len()] {
        let old = self.factors[input];
        let row = self.problem.weights.row(input);
        let peak = |first: f64, second: f64, value: f64, factor: f64| {
            let rest = if value * old >= first { second } else { first };
            let largest = larger(rest, value * factor);
            largest * largest
        };
        let ((first, firsts), (second, seconds), (row, values)) = (
            self.first.as_chunks::<LANES>(),
            self.second.as_chunks::<LANES>(),
            row.as_chunks::<LANES>(),
        );
        let mut sums = [[0.0; LANES]; MOVES.len()];
        for ((first, second), row) in first.iter().zip(second).zip(row) {
            for (sum, factor) in sums.iter_mut().zip(factors) {
                for lane in 0..LANES {
                    sum[lane] += peak(first[lane], second[lane], f64::from(row[lane]), factor);
                }
            }
        }
        let mut peaks = sums.map(|lanes| lanes.iter().sum());
        for ((first, second), value) in firsts.iter().zip(seconds).zip(values) {
            for (sum, factor) in peaks.iter_mut().zip(factors) {
                *sum += peak(*first, *second, f64::from(*value), factor);
            }
        }
        peaks
    }

    fn set(&mut self, input: usize, new: f64) {
        let old = std::mem::replace(&mut self.factors[input], new);
        self.noise += self.rows[input] * (new * new - old * old);
        self.power += self.problem.squares[input] * (1.0 / (new * new) - 1.0 / (old * old));
        let weights = self.problem.weights;
        for (column, value) in weights.row(input).iter().enumerate() {
            let (was, is) = (f64::from(*value) * old, f64::from(*value) * new);
            // Only columns in which it is or was among the two largest change.
            if was >= self.second[column] || is > self.second[column] {
                let values =
                    self.factors.iter().enumerate().map(|(other, factor)| {
                        f64::from(weights.magnitudes[other * weights.columns + column]) * factor
                    });
                [self.first[column], self.second[column]] = largest(values);
            }
        }
        self.add_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::noise;

    fn ends(up: &[f64]) -> Ends {
        Ends {
            up: up.to_vec(),
            down: up.to_vec(),
        }
    }

    #[test]
    fn one_wide_channel_is_divided_and_the_error_is_what_it_says() {
        let mut up = vec![1.0; 32];
        up[3] = 40.0;
        let squares: Vec<f64> = up.iter().map(|up| up * up / 9.0).collect();
        let weights = Weights::new(32, &[(noise(1, 32 * 8), 8), (noise(2, 32 * 16), 16)]);
        let ends = ends(&up);
        let problem = Problem {
            ends: &ends,
            squares: &squares,
            weights: &weights,
            left: 1.0,
        };
        let (factors, share) = factors(&problem).unwrap();
        assert!(
            factors[3] > 3.0 * factors[4] && share < 0.3,
            "{} {share}",
            factors[3] / factors[4]
        );
        // The sums that are kept up to date are those of a fresh start.
        let mut state = State::new(&problem, vec![1.0; 32]);
        state.descend();
        let fresh = State::new(&problem, state.factors.clone());
        assert!((state.error() / fresh.error() - 1.0).abs() < 1e-9);
        let plain = State::new(&problem, vec![1.0; 32]).error();
        assert!(State::new(&problem, factors).error() <= state.error().min(share * plain) * (1.0 + 1e-9));
    }

    #[test]
    fn inputs_that_are_never_used_say_nothing() {
        let weights = Weights::new(4, &[(vec![0.0; 16], 4)]);
        let ends = ends(&[0.0; 4]);
        let problem = Problem {
            ends: &ends,
            squares: &[0.0; 4],
            weights: &weights,
            left: 1.0,
        };
        assert!(factors(&problem).is_none());
    }
}
