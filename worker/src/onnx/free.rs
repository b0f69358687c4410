//! Sizes that a model declares and its data does not have: freed, so that it runs on rows of another shape than it was exported with.
//!
//! Decides which declared sizes go. Never changes a node: whether the nodes take the new sizes is for ONNX Runtime to say.

use super::{
    error::shown,
    model::{Dim, Graph, Model, Node, ValueInfo},
};
use std::collections::BTreeMap;

/// Shapes of rows, without the batch, by name of input; with as many sizes as the input has dimensions, of all of it.
pub type RowShapes = BTreeMap<String, Vec<usize>>;

/// A shape that no input of the model can have, whatever is freed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("data.inputs gives rows of shape {shape:?} to input {input}, but {problem}")]
pub struct Mismatch {
    /// Escaped name.
    input: String,
    shape: Vec<usize>,
    problem: String,
}

/// Frees the sizes that inputs declare and `rows` does not have: the batch where it is fixed and not 1, and others where they differ.
///
/// Outputs and values in between then keep only their rank, since nothing says which of their sizes came from those. Returns
/// the number of sizes that inputs lost; with 0 the model is as it was. Errors where there is no such input, or it is of another rank.
pub fn free_dimensions(model: &mut Model, rows: &RowShapes) -> Result<usize, Mismatch> {
    let graph = &mut model.graph;
    let mut freed = 0;
    for (name, row) in rows {
        let mismatch = |problem: String| Mismatch {
            input: shown(name),
            shape: row.clone(),
            problem,
        };
        let weight = graph.initializers.iter().any(|tensor| tensor.name == *name);
        let input = graph.inputs.iter_mut().find(|input| input.name == *name && !weight);
        let input = input.ok_or_else(|| mismatch("the model has no such input".to_owned()))?;
        let Some((declared, mut dims)) = input
            .tensor_type()
            .and_then(|declared| Some((declared.element, declared.shape?)))
        else {
            continue;
        };
        let batch: &[usize] = match dims.len().checked_sub(row.len()) {
            Some(0) => &[],
            Some(1) => &[1],
            _ => {
                return Err(mismatch(format!(
                    "the model takes {} dimensions, the batch included",
                    dims.len()
                )));
            }
        };
        let before = freed;
        for (dim, size) in dims.iter_mut().zip(batch.iter().chain(row)) {
            if matches!(dim, Dim::Fixed(fixed) if usize::try_from(*fixed) != Ok(*size)) {
                *dim = Dim::Unknown;
                freed += 1;
            }
        }
        if freed > before {
            input.type_proto = ValueInfo::tensor(name, declared, &dims).type_proto;
        }
    }
    if freed > 0 {
        graph.outputs.iter_mut().for_each(keep_rank);
        forget(graph);
    }
    Ok(freed)
}

/// Drops what exporters left of values in between, here and in the graphs inside.
fn forget(graph: &mut Graph) {
    graph.value_info.clear();
    for body in graph.nodes.iter_mut().flat_map(Node::bodies_mut) {
        body.inputs.iter_mut().chain(&mut body.outputs).for_each(keep_rank);
        forget(body);
    }
}

fn keep_rank(info: &mut ValueInfo) {
    if let Some(declared) = info.tensor_type()
        && let Some(mut dims) = declared.shape
    {
        let fixed = dims.iter_mut().filter(|dim| matches!(dim, Dim::Fixed(_)));
        fixed.for_each(|dim| *dim = Dim::Unknown);
        info.type_proto = ValueInfo::tensor(&info.name, declared.element, &dims).type_proto;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        onnx::{AttributeValue, ElementType, Tensor},
        testing::{self, Build},
    };

    /// A convolution and an upsampling, declared for ten small images as an exporter leaves it.
    fn fixed() -> Model {
        let mut b = Build::opset(17);
        let x = b.input("x", &[10, 3, 8, 8]);
        let weights = b.weights(&[4, 3, 3, 3]);
        let pads = AttributeValue::Ints(vec![1, 1, 1, 1]);
        let y = b.node_with("Conv", &[&x, &weights], &[("pads", pads)]);
        let z = b.node("Relu", &[&y]);
        let mut model = b.finish(&[&z]);
        let dims = [10, 4, 8, 8].map(Dim::Fixed);
        model.graph.value_info = vec![ValueInfo::tensor(&y, ElementType::Float, &dims)];
        model.graph.outputs = vec![ValueInfo::tensor(&z, ElementType::Float, &dims)];
        model
    }

    fn of(shape: &[usize]) -> RowShapes {
        RowShapes::from([("x".to_owned(), shape.to_vec())])
    }

    #[test]
    fn a_fixed_model_runs_at_the_shape_of_the_rows() {
        let mut model = fixed();
        assert_eq!(free_dimensions(&mut model, &of(&[3, 16, 24])), Ok(3));
        let shape = |info: &ValueInfo| info.tensor_type().unwrap().shape.unwrap();
        let unknown = Dim::Unknown;
        assert_eq!(
            shape(&model.graph.inputs[0]),
            [unknown.clone(), Dim::Fixed(3), unknown.clone(), unknown.clone()]
        );
        assert_eq!(shape(&model.graph.outputs[0]), vec![unknown; 4]);
        assert!(model.graph.value_info.is_empty());
        let image = Tensor::floats("x", &[1, 3, 16, 24], &testing::noise(1, 3 * 16 * 24)).unwrap();
        assert_eq!(testing::run(&model, &[image])[0].dims, [1, 4, 16, 24]);
        let again = model.clone();
        assert_eq!(free_dimensions(&mut model, &of(&[3, 16, 24])), Ok(0));
        assert_eq!(model, again);
    }

    #[test]
    fn a_shape_of_all_dimensions_has_no_batch_in_front() {
        let mut model = fixed();
        assert_eq!(free_dimensions(&mut model, &of(&[10, 3, 8, 8])), Ok(0));
        assert_eq!(free_dimensions(&mut model, &of(&[2, 3, 8, 9])), Ok(2));
        let dims = model.graph.inputs[0].tensor_type().unwrap().shape.unwrap();
        assert_eq!(dims, [Dim::Unknown, Dim::Fixed(3), Dim::Fixed(8), Dim::Unknown]);
    }

    #[test]
    fn what_is_right_already_stays() {
        let mut b = Build::opset(17);
        let x = b.input("x", &[1, 8]);
        let y = b.node("Relu", &[&x]);
        let mut model = b.finish(&[&y]);
        model.graph.value_info = vec![ValueInfo::tensor(
            &y,
            ElementType::Float,
            &[Dim::Fixed(1), Dim::Fixed(8)],
        )];
        let before = model.clone();
        assert_eq!(free_dimensions(&mut model, &of(&[8])), Ok(0));
        assert_eq!(model, before);
    }

    #[test]
    fn shapes_that_no_input_has_are_refused() {
        let refused = |shapes| free_dimensions(&mut fixed(), &shapes).unwrap_err().to_string();
        let text = refused(of(&[480, 640]));
        assert!(
            text.contains("[480, 640]") && text.contains("takes 4 dimensions"),
            "{text}"
        );
        let text = refused(RowShapes::from([("y".to_owned(), vec![3])]));
        assert!(text.contains("`y`") && text.contains("no such input"), "{text}");
    }
}
