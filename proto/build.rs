//! Compiles the contract with protox, so that nobody needs `protoc`. Requests for commands are read from JSON, too: they and
//! the messages in them implement `Deserialize`, and `ToSchema` where an OpenAPI description is made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic_prost_build::Builder;

/// Where the contract is, beside this file.
const ROOT: &str = "daybook";

/// Where the JSON Schemas of events are, beside this file: one for each type and version that was ever written.
const SCHEMAS: &str = "schemas";
/// Where the contracts of others are that it refers to.
const THIRD_PARTY: &str = "third_party";

/// The fields by which a request for a command is known.
const COMMAND_FIELDS: [&str; 3] = ["request_id", "context", "expected_version"];

const TIMESTAMP: &str = ".google.protobuf.Timestamp";

/// What OpenAPI says about a moment.
const MOMENT_SCHEMA: &str =
    "#[cfg_attr(feature = \"openapi\", schema(value_type = Option<String>, format = DateTime))]";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    println!("cargo::rerun-if-changed={SCHEMAS}");
    println!("cargo::rerun-if-changed={THIRD_PARTY}");
    let mut files = Vec::new();
    collect(Path::new(ROOT), &mut files)?;
    files.sort();
    let descriptors = protox::compile(files, [".", THIRD_PARTY])?;
    let directory = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(
        directory.join("daybook.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )?;
    fs::write(directory.join("event_schemas.rs"), event_schemas()?)?;
    let messages = messages(&descriptors);
    let mut builder = tonic_prost_build::configure().extern_path(".google.rpc", "::tonic_types::pb");
    let mut objects = String::new();
    for name in readable(&messages) {
        builder = read_from_json(builder, &name, messages[&name]);
        let path = name.replace('.', "::");
        writeln!(objects, "object!(crate{});", path.trim_start_matches("::daybook"))?;
    }
    fs::write(directory.join("objects.rs"), objects)?;
    builder.compile_fds(descriptors)?;
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}

/// An array with the name and the text of each schema, in order.
fn event_schemas() -> Result<String, Box<dyn Error>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(SCHEMAS)? {
        let path = entry?.path().canonicalize()?;
        let name = path.file_stem().and_then(|name| name.to_str());
        files.insert(name.ok_or("a schema has a name")?.to_owned(), path);
    }
    let mut array = String::from("&[");
    for (name, path) in files {
        write!(array, "({name:?}, include_str!({path:?})),")?;
    }
    array.push(']');
    Ok(array)
}

/// Our own messages, by their full names (`.daybook.orders.v1.Address`).
fn messages(descriptors: &FileDescriptorSet) -> BTreeMap<String, &DescriptorProto> {
    let files = descriptors.file.iter();
    let ours = files.filter(|file| file.package().starts_with("daybook."));
    ours.flat_map(|file| {
        let named = |message| {
            (
                format!(".{}.{}", file.package(), DescriptorProto::name(message)),
                message,
            )
        };
        file.message_type.iter().map(named)
    })
    .collect()
}

/// The names of all requests for commands, and of the messages in them.
fn readable(messages: &BTreeMap<String, &DescriptorProto>) -> BTreeSet<String> {
    let requests = messages.iter().filter(|(_, message)| is_command(message));
    let mut to_visit: Vec<String> = requests.map(|(name, _)| name.clone()).collect();
    let mut readable = BTreeSet::new();
    while let Some(name) = to_visit.pop() {
        let fields = messages[&name].field.iter();
        let inner = fields.filter(|field| messages.contains_key(field.type_name()));
        to_visit.extend(inner.map(|field| field.type_name().to_owned()));
        readable.insert(name);
    }
    readable
}

fn is_command(message: &DescriptorProto) -> bool {
    let has = |name: &str| message.field.iter().any(|field| field.name() == name);
    COMMAND_FIELDS.into_iter().all(has)
}

/// Has a message read from JSON: `remote` leaves the trait to `object!`, which takes nothing but an object for it.
fn read_from_json(builder: Builder, name: &str, message: &DescriptorProto) -> Builder {
    let builder = builder
        .type_attribute(name, "#[derive(serde::Deserialize)]")
        .type_attribute(name, "#[serde(remote = \"Self\")]")
        .type_attribute(
            name,
            "#[cfg_attr(feature = \"openapi\", derive(utoipa::ToSchema))]",
        );
    message.field.iter().fold(builder, |builder, field| {
        let path = format!("{name}.{}", field.name());
        if is_command(message) && field.name() == "request_id" {
            // It comes in a header.
            return builder.field_attribute(path, "#[serde(skip)]");
        }
        let builder = builder.field_attribute(&path, "#[serde(default)]");
        match field.type_name() {
            TIMESTAMP => builder
                .field_attribute(
                    &path,
                    "#[serde(deserialize_with = \"crate::convert::json::moment\")]",
                )
                .field_attribute(&path, MOMENT_SCHEMA),
            _ => builder,
        }
    })
}
