//! What becomes of a derived definition before it is published: its descriptions flow, so that `kubectl explain` wraps them.
//!
//! Decides nothing about the schema's rules.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// Joins the lines of every description: where a comment in the source wraps says nothing to its readers.
pub(crate) fn with_flowing_descriptions(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        if let Some(schema) = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
        {
            flow(schema);
        }
    }
    definition
}

fn flow(schema: &mut JSONSchemaProps) {
    if let Some(description) = &mut schema.description {
        *description = description.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|properties| properties.values_mut())
    {
        flow(property);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        flow(values);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => flow(items),
        Some(JSONSchemaPropsOrArray::Schemas(all)) => all.iter_mut().for_each(flow),
        None => {}
    }
}
