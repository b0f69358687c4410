//! Regions of quantized nodes that hand integers to each other, and which of them are better left as floats. Decides by the ratios that it
//! is given; makes and runs nothing.

use crate::onnx::{Index, Model};
use std::collections::{BTreeMap, BTreeSet};

/// Ratio of times below which nobody asks which region is to blame for what the others win.
const CLEAR: f64 = 0.8;
/// Difference of times that is none.
const TIE: f64 = 0.03;
/// Regions that are tried, the smallest first: those have the most conversions for their work.
const MOST_TRIED: usize = 8;

/// The names of the nodes in `quantized`, by region: one reads what another of its region makes, behind its Relu or Clip.
pub(super) fn connected(float: &Model, quantized: &[String]) -> Vec<BTreeSet<String>> {
    let index = Index::new(&float.graph);
    let quantized: BTreeSet<&str> = quantized.iter().map(String::as_str).collect();
    let nodes = index
        .graph
        .nodes
        .iter()
        .filter(|node| quantized.contains(node.name.as_str()));
    let mut makers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut regions: Vec<BTreeSet<String>> = Vec::new();
    for node in nodes {
        let read: BTreeSet<usize> = node
            .inputs
            .iter()
            .filter_map(|name| makers.get(name.as_str()).copied())
            .collect();
        let mut region = BTreeSet::from([node.name.clone()]);
        for &joined in &read {
            region.append(&mut regions[joined]);
        }
        let number = regions.len();
        regions.push(region);
        makers
            .values_mut()
            .filter(|maker| read.contains(maker))
            .for_each(|maker| *maker = number);
        let mut made = node.output();
        makers.insert(made, number);
        if let Some((_, next)) = index
            .only_use(made)
            .filter(|(_, next)| next.is("Relu") || next.is("Clip"))
        {
            made = next.output();
            makers.insert(made, number);
        }
    }
    regions.retain(|region| !region.is_empty());
    regions
}

/// The nodes of those `regions` without which it is faster to run. `ratio` gives the time with the second set of nodes left over that with
/// the first; none for `left` stands for all nodes left, the float model.
///
/// Where there are more than can be tried each, as where an activation without an integer kernel cuts a network behind every convolution, the
/// smallest are tried together first: all, half of them, and so on. A difference of less than 3 % is a tie, and changes nothing; a larger one
/// is measured twice.
pub(super) fn slow<E>(
    mut regions: Vec<BTreeSet<String>>,
    mut ratio: impl FnMut(Option<&BTreeSet<String>>, &BTreeSet<String>) -> Result<f64, E>,
) -> Result<BTreeSet<String>, E> {
    let mut left = BTreeSet::new();
    if regions.len() < 2 || ratio(None, &left)? < CLEAR {
        return Ok(left);
    }
    let mut faster = |left: &BTreeSet<String>, tried: &BTreeSet<String>| {
        let mut ahead = || Ok(ratio(Some(left), tried)? < 1.0 - TIE);
        Ok(ahead()? && ahead()?)
    };
    regions.sort_by_key(BTreeSet::len);
    // The largest is what quantizing is about.
    regions.pop();
    let mut together = regions.len();
    while together > MOST_TRIED {
        let tried = regions.iter().take(together).flatten().cloned().collect();
        if faster(&left, &tried)? {
            left = tried;
        }
        together /= 2;
    }
    let others: Vec<_> = regions.iter().filter(|region| !region.is_subset(&left)).collect();
    for region in others.into_iter().take(MOST_TRIED) {
        let tried: BTreeSet<String> = left.union(region).cloned().collect();
        if faster(&left, &tried)? {
            left = tried;
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{onnx, testing::Build};
    use std::convert::Infallible;

    #[test]
    fn a_float_between_two_convolutions_parts_their_regions() {
        let mut b = Build::opset(17);
        let mut x = b.input("x", &[1, 4, 8, 8]);
        for activation in ["Relu", "HardSwish", "Relu"] {
            let weights = b.weights(&[4, 4, 1, 1]);
            let y = b.node("Conv", &[&x, &weights]);
            x = b.node(activation, &[&y]);
        }
        let mut model = b.finish(&[&x]);
        onnx::normalize(&mut model).unwrap();
        let convolutions = || {
            model
                .graph
                .nodes
                .iter()
                .filter(|node| node.is("Conv"))
                .map(|node| node.name.clone())
        };
        let names: Vec<String> = convolutions().collect();
        let [first, second, third] = &names[..] else {
            panic!("{names:?}")
        };
        let regions = connected(&model, &names);
        let wanted = [
            BTreeSet::from([first.clone(), second.clone()]),
            BTreeSet::from([third.clone()]),
        ];
        assert_eq!(regions, wanted);
        assert_eq!(connected(&model, &names[..1]).len(), 1);
    }

    /// What is left where each node takes its cost with integers and 10 with floats.
    fn left(costs: &[(&str, f64)], regions: &[&[&str]]) -> (Vec<String>, usize) {
        let regions = regions
            .iter()
            .map(|names| names.iter().map(|name| (*name).to_owned()).collect())
            .collect();
        let time = |left: Option<&BTreeSet<String>>| -> f64 {
            let cost = |(name, cost): &(&str, f64)| match left {
                Some(left) if !left.contains(*name) => *cost,
                _ => 10.0,
            };
            costs.iter().map(cost).sum()
        };
        let mut asked = 0;
        let left = slow::<Infallible>(regions, |before, after| {
            asked += 1;
            Ok(time(Some(after)) / time(before))
        });
        (left.unwrap().into_iter().collect(), asked)
    }

    #[test]
    fn of_many_regions_the_smallest_are_left_together() {
        let names: Vec<String> = (10..60).map(|number| format!("n{number}")).collect();
        let slow = |name: &str| name < "n40";
        let costs: Vec<(&str, f64)> = names
            .iter()
            .map(|name| (name.as_str(), if slow(name) { 14.0 } else { 9.0 }))
            .collect();
        let mut regions: Vec<Vec<&str>> = names[..30].iter().map(|name| vec![name.as_str()]).collect();
        regions.extend(
            names[30..]
                .chunks(10)
                .map(|names| names.iter().map(String::as_str).collect()),
        );
        let regions: Vec<&[&str]> = regions.iter().map(Vec::as_slice).collect();
        let (left, asked) = left(&costs, &regions);
        assert!(
            left.len() >= 30 && left.iter().filter(|name| !slow(name)).count() <= 10,
            "{left:?}"
        );
        assert!(asked < 20, "{asked}");
    }

    #[test]
    fn regions_that_are_slower_are_left_and_ties_are_not() {
        let regions: &[&[&str]] = &[&["a"], &["b", "c"], &["d", "e", "f"]];
        let costs = |of_a, of_b| {
            [
                ("a", of_a),
                ("b", of_b),
                ("c", of_b),
                ("d", 9.0),
                ("e", 9.0),
                ("f", 9.0),
            ]
        };
        assert_eq!(left(&costs(14.0, 9.0), regions), (vec!["a".to_owned()], 4));
        assert_eq!(left(&costs(11.0, 9.0), regions), (vec![], 3), "a tie");
        assert_eq!(left(&costs(9.0, 14.0), regions).0, ["b", "c"]);
        assert_eq!(left(&costs(14.0, 1.0), regions), (vec![], 1), "clearly faster as it is");
        assert_eq!(
            left(&costs(14.0, 9.0), &regions[..1]),
            (vec![], 0),
            "there is nothing to choose"
        );
        assert_eq!(
            left(&costs(f64::NAN, 9.0), regions).0,
            Vec::<String>::new(),
            "no number opens nothing"
        );
    }
}
