//! Which rows are run together.
//!
//! Decides by their lengths and their order alone, so that the same rows make the same batches; never how many a model takes.

use std::ops::Range;

use super::{Bound, Feed};
use crate::data::Error;
use crate::onnx::Tensor;

/// Rows among which those of one length are looked for. All are on their way before one of the next window is.
const WINDOW: u64 = 64;

/// Rows of one length.
struct Alike {
    /// Numbers in a row, for each input.
    numbers: Vec<usize>,
    rows: Vec<u64>,
}

impl Feed {
    /// The first row alone, which is what a model is tried on, and then batches of at most `size` rows of one length, each in order.
    ///
    /// Where lengths differ, a batch holds no more numbers than the longest row nearby: memory goes by that row, and not by how many
    /// rows happen to be of one length.
    pub fn batches(&self, size: usize) -> impl Iterator<Item = Result<Vec<Tensor>, Error>> + '_ {
        let size = size.clamp(1, self.most);
        let rows = self.rows();
        let windows = (1..rows).step_by(usize::try_from(WINDOW).unwrap_or(usize::MAX));
        let first = (rows > 0).then_some(0..1);
        let windows = first
            .into_iter()
            .chain(windows.map(move |start| start..rows.min(start + WINDOW)));
        windows
            .flat_map(move |window| self.groups(window, size))
            .map(|rows| self.tensors(rows))
    }

    /// The rows of a window in groups that can be run, ordered by the first row of each.
    fn groups(&self, window: Range<u64>, size: usize) -> Vec<Vec<u64>> {
        let mut lengths: Vec<Alike> = Vec::new();
        for row in window {
            let numbers: Vec<usize> = self.bound.iter().map(|bound| self.numbers(bound, row)).collect();
            match lengths.iter_mut().find(|alike| alike.numbers == numbers) {
                Some(alike) => alike.rows.push(row),
                None => lengths.push(Alike {
                    numbers,
                    rows: vec![row],
                }),
            }
        }
        let numbers = |alike: &Alike| alike.numbers.iter().sum::<usize>().max(1);
        let longest = lengths.iter().map(numbers).max().unwrap_or(1);
        let most = |alike: &Alike| match lengths.len() {
            1 => size,
            _ => size.min(longest / numbers(alike)),
        };
        let mut groups: Vec<Vec<u64>> = lengths
            .iter()
            .flat_map(|alike| alike.rows.chunks(most(alike)).map(<[u64]>::to_vec))
            .collect();
        groups.sort();
        groups
    }

    /// Numbers of a row that the model is given.
    fn numbers(&self, bound: &Bound, row: u64) -> usize {
        let width = self.staged.width(bound.index, row);
        let Some(axis) = bound.axis else { return width };
        let padded = self.dims(bound, row).ok().and_then(|dims| dims.get(axis).copied());
        width / padded.unwrap_or(1).max(1) * self.length(row)
    }
}
