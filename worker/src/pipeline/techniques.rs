//! The plan's stages in the optimizer's terms, or why they make no sense. Never touches a model.

use assayer_crds::contract::{MakePlan, reasons};
use assayer_crds::stages::{
    self, ActivationType, CalibrationKind, QuantizeMode, RecoverMethod, SimplifyPass, WeightType,
};
use assayer_crds::units;

use crate::calibrate::Method;
use crate::failure::{Result, bug, refused};
use crate::optimize::Stage;
use crate::passes::{
    Activations, Bits, Blocks, Choice, Format, Granularity, Mode, Quantize, Raise, Recovery, Simplify, Smoothing,
    Weights,
};

/// Weights that share a scale where the plan does not say: the most accurate of the sizes that cost less than a bit a weight.
const DEFAULT_BLOCK: u32 = 32;

/// Share of values inside the range, in percent, where the plan does not say.
const DEFAULT_PERCENTILE: &str = "99.999";

/// By how much a run moves an average where the plan does not say: as ONNX Runtime and TensorFlow do.
const DEFAULT_AVERAGING: &str = "0.01";

/// Share of the weights that is raised where the plan does not say.
const DEFAULT_SHARE: &str = "0.2";

/// The plan's stages; what recovers after a `quantize` changes how that one is done.
///
/// `instruction_set` is that of this machine: it chooses the weights where the plan does not.
pub(super) fn of(plan: &MakePlan, instruction_set: &'static str) -> Result<Vec<Stage>> {
    if let Some(problem) = stages::out_of_order(&plan.stages) {
        return Err(refused(reasons::PLAN_INVALID, format!("stages: {problem}")));
    }
    let mut made = Vec::new();
    for (position, stage) in plan.stages.iter().enumerate() {
        if let Some(settings) = &stage.simplify {
            made.push(Stage::Simplify(Simplify {
                skip: settings.skip.iter().copied().map(SimplifyPass::name).collect(),
                indices_in_bounds: settings.assume_indices_in_bounds,
                ..Simplify::default()
            }));
        }
        if let Some(settings) = &stage.quantize {
            let choice = Choice {
                only: settings.only.clone(),
                except: settings.except.clone(),
            };
            made.extend(Some(choice).filter(|choice| !choice.is_empty()).map(Stage::Choose));
            made.push(quantize(settings, instruction_set)?);
        }
        match &stage.recover {
            None => {}
            Some(recover) if recover.method == RecoverMethod::SmoothQuant => {
                made.push(Stage::Smooth(smoothing(&plan.stages[position + 1..])));
            }
            Some(recover) if recover.method == RecoverMethod::Equalization => made.push(Stage::Equalize),
            Some(recover) => match made.last_mut() {
                Some(Stage::Quantize(Quantize { recovery, .. }) | Stage::QuantizeBlocks(Blocks { recovery, .. })) => {
                    help(recovery, recover)?;
                }
                _ => return Err(bug("what recovers follows no quantize, although the order was checked")),
            },
        }
    }
    Ok(made)
}

/// How to smooth for the `quantize` that `after` begins with.
fn smoothing(after: &[stages::Stage]) -> Smoothing {
    let quantize = after.first().and_then(|stage| stage.quantize.as_ref());
    let helped = after.iter().skip(1).map_while(|stage| stage.recover.as_ref());
    Smoothing {
        mode: match quantize.map(|quantize| quantize.mode) {
            Some(QuantizeMode::Static) => Mode::Static,
            _ => Mode::Dynamic,
        },
        gptq: helped
            .take_while(|recover| recover.method != RecoverMethod::SmoothQuant)
            .any(|recover| recover.method == RecoverMethod::GPTQ),
        four_bits: quantize.is_some_and(|quantize| quantize.weights == Some(WeightType::Int4)),
    }
}

fn help(recovery: &mut Recovery, recover: &stages::Recover) -> Result<()> {
    match recover.method {
        RecoverMethod::GPTQ => recovery.gptq = true,
        RecoverMethod::BiasCorrection => recovery.bias_correction = true,
        RecoverMethod::RaisePrecision => {
            let decimal = |field: &str, value: &str| {
                units::decimal(value)
                    .map_err(|error| refused(reasons::PLAN_INVALID, format!("recover.{field}: {error}")))
            };
            if !recover.nodes.is_empty() {
                recovery.raise = Some(Raise::Named(recover.nodes.clone()));
                return Ok(());
            }
            recovery.raise = Some(Raise::Worst {
                share: decimal("share", recover.share.as_deref().unwrap_or(DEFAULT_SHARE))?,
                goal: match recover.goal.as_deref() {
                    None => None,
                    Some(goal) => match decimal("goal", goal)? {
                        value if value > 0.0 && value < 1.0 => Some(value),
                        _ => {
                            let message =
                                format!("recover.goal {goal} is not between 0 and 1; a cosine such as \"0.999\"");
                            return Err(refused(reasons::PLAN_INVALID, message));
                        }
                    },
                },
            });
        }
        RecoverMethod::SmoothQuant | RecoverMethod::Equalization => {}
    }
    Ok(())
}

fn quantize(quantize: &stages::Quantize, instruction_set: &'static str) -> Result<Stage> {
    if quantize.integer_inputs_outputs && quantize.mode != QuantizeMode::Static {
        return Err(refused(
            reasons::PLAN_INVALID,
            "quantize.integerInputsOutputs is for mode Static, which knows ranges beforehand: remove it or set mode: Static",
        ));
    }
    if quantize.integer_inputs_outputs && quantize.activations == ActivationType::Int8 {
        return Err(refused(
            reasons::PLAN_INVALID,
            "quantize.integerInputsOutputs is for activations: UInt8; behind signed inputs ONNX Runtime computes with floats: remove one of them",
        ));
    }
    let mode = match quantize.mode {
        QuantizeMode::Dynamic => Mode::Dynamic,
        QuantizeMode::Static => Mode::Static,
        QuantizeMode::WeightOnly => return blocks(quantize),
        QuantizeMode::Float16 => return Ok(Stage::Float16),
    };
    let (weights, chosen_for) = match quantize.weights {
        None | Some(WeightType::Int4) => (Weights::suiting(instruction_set), Some(instruction_set)),
        Some(WeightType::Int8) => (Weights::Int8, None),
        Some(WeightType::Int7) => (Weights::Int7, None),
    };
    let four_bits = match quantize.weights {
        Some(WeightType::Int4) => Some(block(quantize)?),
        _ => None,
    };
    let calibration = quantize.calibration.as_ref().map_or(Ok(Method::MinMax), ranges)?;
    Ok(Stage::Quantize(Quantize {
        mode,
        activations: match quantize.activations {
            ActivationType::UInt8 => Activations::UInt8,
            ActivationType::Int8 => Activations::Int8,
        },
        granularity: match quantize.granularity {
            stages::Granularity::PerChannel => Granularity::PerChannel,
            stages::Granularity::PerTensor => Granularity::PerTensor,
        },
        weights,
        four_bits,
        chosen_for,
        integer_ends: quantize.integer_inputs_outputs,
        calibration,
        format: match quantize.format {
            None | Some(stages::Format::QOperator) => Format::QOperator,
            Some(stages::Format::QDQ) => Format::Qdq,
        },
        recovery: Recovery::default(),
    }))
}

/// How ranges are chosen.
fn ranges(calibration: &stages::CalibrationMethod) -> Result<Method> {
    let number = |field: &str, given: &Option<String>, default: &str| {
        units::decimal(given.as_deref().unwrap_or(default))
            .map_err(|error| refused(reasons::PLAN_INVALID, format!("quantize.calibration.{field}: {error}")))
    };
    Ok(match calibration.method {
        CalibrationKind::MinMax => Method::MinMax,
        CalibrationKind::MovingAverage => Method::MovingAverage(number(
            "averagingConstant",
            &calibration.averaging_constant,
            DEFAULT_AVERAGING,
        )?),
        CalibrationKind::Entropy => Method::Entropy,
        CalibrationKind::Percentile => {
            Method::Percentile(number("percentile", &calibration.percentile, DEFAULT_PERCENTILE)?)
        }
        CalibrationKind::MeanSquaredError => Method::MeanSquaredError,
    })
}

/// Weights that share a scale.
fn block(quantize: &stages::Quantize) -> Result<usize> {
    let size = quantize.block.unwrap_or(DEFAULT_BLOCK);
    if matches!(size, 16 | 32 | 64 | 128 | 256) {
        return Ok(size as usize);
    }
    let message = format!("quantize.block {size} is not possible: use 16, 32, 64, 128 or 256");
    Err(refused(reasons::PLAN_INVALID, message))
}

fn blocks(quantize: &stages::Quantize) -> Result<Stage> {
    let bits = match quantize.weights {
        None | Some(WeightType::Int8) => Bits::Eight,
        Some(WeightType::Int4) => Bits::Four,
        Some(WeightType::Int7) => {
            return Err(refused(
                reasons::PLAN_INVALID,
                "quantize.weights: Int7 is for modes Static and Dynamic; use Int8 or Int4",
            ));
        }
    };
    Ok(Stage::QuantizeBlocks(Blocks {
        bits,
        size: block(quantize)?,
        recovery: Recovery::default(),
    }))
}

#[cfg(test)]
mod tests {
    use assayer_crds::stages::CalibrationMethod;

    use super::*;

    fn planned(mode: QuantizeMode, calibration: Option<CalibrationMethod>) -> stages::Quantize {
        stages::Quantize {
            mode,
            weights: Some(WeightType::Int8),
            activations: ActivationType::Int8,
            granularity: stages::Granularity::PerTensor,
            block: None,
            calibration,
            only: Vec::new(),
            except: Vec::new(),
            integer_inputs_outputs: false,
            format: (mode == QuantizeMode::Static).then_some(stages::Format::QDQ),
        }
    }

    fn plan(stages: &[(Option<stages::Quantize>, Option<RecoverMethod>)]) -> MakePlan {
        let stages: Vec<stages::Stage> = stages
            .iter()
            .map(|(quantize, recover)| stages::Stage {
                simplify: None,
                quantize: quantize.clone(),
                recover: recover.map(|method| stages::Recover {
                    method,
                    share: None,
                    goal: None,
                    nodes: Vec::new(),
                }),
            })
            .collect();
        let plan = serde_json::json!({
            "baseline": {"uri": "oci://r/b"}, "candidate": "c", "stages": stages, "inputs": [], "output": "oci://r/c",
        });
        serde_json::from_value(plan).unwrap()
    }

    #[test]
    fn stages_keep_their_settings() {
        let percentile = CalibrationMethod {
            method: CalibrationKind::Percentile,
            percentile: Some("99.9".into()),
            averaging_constant: None,
        };
        let made = of(
            &plan(&[
                (Some(planned(QuantizeMode::Static, Some(percentile))), None),
                (None, Some(RecoverMethod::SmoothQuant)),
                (Some(planned(QuantizeMode::Dynamic, None)), None),
                (Some(planned(QuantizeMode::WeightOnly, None)), None),
                (None, Some(RecoverMethod::BiasCorrection)),
                (None, Some(RecoverMethod::GPTQ)),
                (Some(planned(QuantizeMode::Dynamic, None)), None),
                (None, Some(RecoverMethod::RaisePrecision)),
                (Some(planned(QuantizeMode::Float16, None)), None),
            ]),
            "avx2",
        );
        let settings = |mode, calibration, raise: Option<f64>| {
            Stage::Quantize(Quantize {
                recovery: Recovery {
                    raise: raise.map(|share| Raise::Worst { share, goal: None }),
                    ..Recovery::default()
                },
                mode,
                activations: Activations::Int8,
                granularity: Granularity::PerTensor,
                weights: Weights::Int8,
                four_bits: None,
                chosen_for: None,
                integer_ends: false,
                calibration,
                format: if mode == Mode::Static {
                    Format::Qdq
                } else {
                    Format::QOperator
                },
            })
        };
        let blocks = Blocks {
            bits: Bits::Eight,
            size: 32,
            recovery: Recovery {
                gptq: true,
                bias_correction: true,
                raise: None,
            },
        };
        let wanted = [
            settings(Mode::Static, Method::Percentile(99.9), None),
            Stage::Smooth(Smoothing {
                mode: Mode::Dynamic,
                gptq: false,
                four_bits: false,
            }),
            settings(Mode::Dynamic, Method::MinMax, None),
            Stage::QuantizeBlocks(blocks),
            settings(Mode::Dynamic, Method::MinMax, Some(0.2)),
            Stage::Float16,
        ];
        assert_eq!(made.unwrap(), wanted);
    }

    #[test]
    fn weights_suit_the_machine_unless_the_plan_says_otherwise() {
        let made = |weights, instruction_set| {
            let quantize = stages::Quantize {
                weights,
                activations: ActivationType::UInt8,
                ..planned(QuantizeMode::Dynamic, None)
            };
            match of(&plan(&[(Some(quantize), None)]), instruction_set).unwrap().pop() {
                Some(Stage::Quantize(made)) => (made.weights, made.chosen_for),
                other => panic!("{other:?}"),
            }
        };
        for old in ["sse", "avx2", "avx512"] {
            assert_eq!(made(None, old), (Weights::Int7, Some(old)));
            assert_eq!(made(Some(WeightType::Int8), old), (Weights::Int8, None));
            // What 4 bits are unpacked to.
            assert_eq!(made(Some(WeightType::Int4), old), (Weights::Int7, Some(old)));
        }
        for new in ["avx512_vnni", "avx_vnni", "neon", "neon_i8mm", "generic"] {
            assert_eq!(made(None, new), (Weights::Int8, Some(new)));
            assert_eq!(made(Some(WeightType::Int7), new), (Weights::Int7, None));
        }
    }

    #[test]
    fn simplify_keeps_its_settings() {
        let mut plan = plan(&[(Some(planned(QuantizeMode::WeightOnly, None)), None)]);
        let stage = serde_json::json!({"simplify": {"skip": ["fuse-gelu"], "assumeIndicesInBounds": true}});
        plan.stages.insert(0, serde_json::from_value(stage).unwrap());
        let wanted = Simplify {
            skip: vec!["fuse-gelu"],
            indices_in_bounds: true,
            ..Simplify::default()
        };
        assert_eq!(of(&plan, "avx2").unwrap()[0], Stage::Simplify(wanted));
    }

    #[test]
    fn stages_that_make_no_sense_are_refused() {
        let odd = CalibrationMethod {
            method: CalibrationKind::Percentile,
            percentile: Some("many".into()),
            averaging_constant: None,
        };
        let slow = CalibrationMethod {
            method: CalibrationKind::MovingAverage,
            percentile: None,
            averaging_constant: Some("slow".into()),
        };
        let dynamic = || Some(planned(QuantizeMode::Dynamic, None));
        let uneven = stages::Quantize {
            weights: Some(WeightType::Int4),
            block: Some(48),
            ..planned(QuantizeMode::Static, None)
        };
        let seven = stages::Quantize {
            weights: Some(WeightType::Int7),
            ..planned(QuantizeMode::WeightOnly, None)
        };
        let bytes = stages::Quantize {
            integer_inputs_outputs: true,
            ..planned(QuantizeMode::WeightOnly, None)
        };
        let signed = stages::Quantize {
            integer_inputs_outputs: true,
            ..planned(QuantizeMode::Static, None)
        };
        for (stages, words) in [
            (vec![(None, None)], "names no technique"),
            (vec![(dynamic(), Some(RecoverMethod::GPTQ))], "or two"),
            (
                vec![(Some(planned(QuantizeMode::Static, Some(odd))), None)],
                "percentile",
            ),
            (
                vec![(Some(planned(QuantizeMode::Static, Some(slow))), None)],
                "averagingConstant",
            ),
            (vec![(None, Some(RecoverMethod::GPTQ))], "right after"),
            (
                vec![
                    (dynamic(), None),
                    (None, Some(RecoverMethod::GPTQ)),
                    (None, Some(RecoverMethod::GPTQ)),
                ],
                "twice",
            ),
            (vec![(Some(uneven), None)], "block 48"),
            (vec![(Some(seven), None)], "Int7"),
            (vec![(Some(bytes), None)], "integerInputsOutputs is for mode Static"),
            (
                vec![(Some(signed), None)],
                "integerInputsOutputs is for activations: UInt8",
            ),
        ] {
            let failure = of(&plan(&stages), "avx2").unwrap_err();
            assert_eq!(failure.reason, reasons::PLAN_INVALID);
            assert!(failure.message.contains(words), "{}", failure.message);
        }
    }
}
