//! Convolutions that 8 bits ruin, and what accuracy control makes of them.

use super::{trial::made, *};
use crate::{
    calibrate::DataError,
    passes::{Choice, Format, Quantize, Raise, Recovery},
    testing::{Build, noise},
};

/// Three convolutions, of which the second reads one channel that is far larger than the others and looks at the others.
fn ruined() -> Model {
    let mut b = Build::opset(17);
    let x = b.input("x", &[1, 8, 16, 16]);
    let mut factors = vec![0.02; 8];
    factors[3] = 60.0;
    let mut spread = noise(9, 8 * 8 * 9);
    for weight in spread.chunks_mut(9).skip(3).step_by(8).flatten() {
        *weight = 0.0;
    }
    let (factors, spread) = (b.floats(&[1, 8, 1, 1], &factors), b.floats(&[8, 8, 3, 3], &spread));
    let (first, last) = (b.weights(&[8, 8, 3, 3]), b.weights(&[8, 8, 3, 3]));
    let made = b.node("Conv", &[&x, &first]);
    let wide = b.node("Mul", &[&made, &factors]);
    let hurt = b.node("Conv", &[&wide, &spread]);
    let y = b.node("Conv", &[&hurt, &last]);
    b.finish(&[&y])
}

fn samples() -> Box<dyn Iterator<Item = Result<Vec<Tensor>, DataError>>> {
    let sample = |seed| Ok(vec![Tensor::floats("x", &[1, 8, 16, 16], &noise(seed, 8 * 256))?]);
    Box::new((0..4).map(sample))
}

/// Everything to 8 bits but for what is named and what is raised.
fn stages(except: Vec<String>, format: Format, raise: Option<Raise>) -> [Stage; 2] {
    let choice = Choice {
        only: vec!["*".to_owned()],
        except,
    };
    let recovery = Recovery {
        raise,
        ..Recovery::default()
    };
    [
        Stage::Choose(choice),
        Stage::Quantize(Quantize {
            format,
            recovery,
            ..Quantize::default()
        }),
    ]
}

fn pass<'r>(report: &'r OptimizeReport, name: &str) -> &'r Report {
    report.passes.iter().find(|pass| pass.name == name).unwrap()
}

#[test]
fn a_convolution_that_loses_much_stays_float_until_the_goal_is_reached_and_a_recipe_repeats_it() {
    let float = ruined();
    for format in [Format::QOperator, Format::Qdq] {
        let raise = |goal| Some(Raise::Worst { share: 0.6, goal });
        let candidate =
            |except, raise| made(&float, &stages(except, format, raise), Given::default(), &samples).unwrap();
        let (bytes, report) = candidate(vec![], raise(Some(0.99)));
        let raised = pass(&report, "raise-precision");
        assert!(raised.note.contains("reaches the goal of 0.99"), "{}", raised.note);
        assert!(
            raised.changed >= 1 && raised.raised[0].why.contains("8 bits lose"),
            "{raised:?}"
        );
        let [chosen] = &report.chosen[..] else {
            panic!("{:?}", report.chosen)
        };
        assert!(
            chosen.raised.is_empty() && chosen.left.len() == raised.changed,
            "{chosen:?}"
        );
        let (again, _) = candidate(chosen.left.clone(), None);
        assert!(again == bytes, "the same nodes, named");

        let (all, report) = candidate(vec![], raise(Some(0.5)));
        let few = pass(&report, "raise-precision").changed;
        let (none, _) = candidate(vec![], None);
        assert_eq!(all == none, few == 0, "nothing is raised that need not be");

        let (_, report) = candidate(vec![], raise(None));
        let raised = pass(&report, "raise-precision");
        assert!(
            raised.changed < 3 && raised.left.iter().any(|left| left.why.contains("without a goal")),
            "{raised:?}"
        );
    }
}

#[test]
fn products_that_blocks_do_not_save_are_floats_at_last() {
    let mut b = Build::opset(17);
    let mut x = b.input("x", &[4, 64]);
    for _ in 0..3 {
        let weights = b.weights(&[64, 64]);
        let product = b.node("MatMul", &[&x, &weights]);
        x = b.node("Tanh", &[&product]);
    }
    let float = b.finish(&[&x]);
    let samples = || -> Box<dyn Iterator<Item = Result<Vec<Tensor>, DataError>>> {
        Box::new((0..4).map(|seed| Ok(vec![Tensor::floats("x", &[4, 64], &noise(seed, 256))?])))
    };
    let raise = Some(Raise::Worst {
        share: 0.9,
        goal: Some(0.999_999),
    });
    let (_, report) = made(
        &float,
        &stages(vec![], Format::QOperator, raise),
        Given::default(),
        &samples,
    )
    .unwrap();
    let (raised, chosen) = (pass(&report, "raise-precision"), &report.chosen[0]);
    assert!(
        raised.raised.iter().any(|node| node.why.starts_with("in floats: ")),
        "{raised:?}"
    );
    assert_eq!(chosen.raised.len() + chosen.left.len(), raised.changed);
    assert!(!chosen.left.is_empty(), "{chosen:?}");
}
