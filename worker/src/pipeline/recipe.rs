//! The stages of a recipe: those of the plan with everything spelled out that the worker chose. Chooses nothing itself.

use assayer_crds::stages::{QuantizeMode, RecoverMethod, Stage, WeightType};

use crate::optimize::Chosen;
use crate::passes::Weights;

/// The pattern that every node matches.
const EVERY: &str = "*";

/// `stages` in the words of the schema, with what each `quantize` has `chosen`, in order, and the weights that this `instruction_set` has
/// chosen. Raising that raised nothing is left out.
pub(super) fn spelled_out(stages: &[Stage], chosen: &[Chosen], instruction_set: &str) -> Vec<Stage> {
    let mut chosen = chosen.iter();
    let mut last = &Chosen::default();
    let mut recipe = Vec::new();
    for stage in stages {
        let mut stage = stage.clone();
        if let Some(quantize) = &mut stage.quantize {
            last = chosen.next().unwrap_or(last);
            if matches!(quantize.mode, QuantizeMode::Static | QuantizeMode::Dynamic) && quantize.weights.is_none() {
                quantize.weights = Some(match Weights::suiting(instruction_set) {
                    Weights::Int8 => WeightType::Int8,
                    Weights::Int7 => WeightType::Int7,
                });
            }
            quantize.except.extend(last.left.iter().cloned());
            if quantize.mode == QuantizeMode::Static && quantize.only.is_empty() && quantize.except.is_empty() {
                // Nobody is to ask again which nodes are better left.
                quantize.only.push(EVERY.to_owned());
            }
        }
        let recover = stage.recover.as_mut();
        if let Some(recover) = recover.filter(|recover| recover.method == RecoverMethod::RaisePrecision) {
            if last.raised.is_empty() {
                continue;
            }
            recover.nodes.clone_from(&last.raised);
            (recover.share, recover.goal) = (None, None);
        }
        recipe.push(stage);
    }
    recipe
}

#[cfg(test)]
mod tests {
    use assayer_crds::stages::out_of_order;

    use super::*;

    #[test]
    fn what_was_chosen_is_spelled_out_and_nothing_else_changes() {
        let stages = |text: serde_json::Value| serde_json::from_value::<Vec<Stage>>(text).unwrap();
        let given = stages(serde_json::json!([
            {"recover": {"method": "SmoothQuant"}},
            {"quantize": {"mode": "Dynamic"}},
            {"recover": {"method": "RaisePrecision", "share": "0.3", "goal": "0.999"}},
            {"recover": {"method": "GPTQ"}},
            {"quantize": {"mode": "WeightOnly", "weights": "Int4"}},
            {"recover": {"method": "RaisePrecision"}},
        ]));
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let chosen = [(&["/a", "b"][..], &["left"][..]), (&[], &[])].map(|(raised, left)| Chosen {
            raised: texts(raised),
            left: texts(left),
        });
        for (instruction_set, weights) in [("avx2", "Int7"), ("avx512_vnni", "Int8")] {
            let wanted = stages(serde_json::json!([
                {"recover": {"method": "SmoothQuant"}},
                {"quantize": {"mode": "Dynamic", "weights": weights, "except": ["left"]}},
                {"recover": {"method": "RaisePrecision", "nodes": ["/a", "b"]}},
                {"recover": {"method": "GPTQ"}},
                {"quantize": {"mode": "WeightOnly", "weights": "Int4"}},
            ]));
            let recipe = spelled_out(&given, &chosen, instruction_set);
            assert_eq!(recipe, wanted);
            assert_eq!(out_of_order(&recipe), None);
            let again = chosen.clone().map(|chosen| Chosen {
                left: Vec::new(),
                ..chosen
            });
            assert_eq!(
                spelled_out(&recipe, &again, "avx2"),
                recipe,
                "a recipe is its own recipe"
            );
        }
    }
}
