//! Compiles the contract with protox, so that nobody needs `protoc`.

use std::path::PathBuf;
use std::{env, error::Error, fs};

const FILES: &[&str] = &[
    "daybook/common/v1/common.proto",
    "daybook/history/v1/history_service.proto",
    "daybook/orders/v1/order_query_service.proto",
    "daybook/orders/v1/order_service.proto",
    "daybook/orders/v1/types.proto",
    "daybook/projections/v1/projection_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=daybook");
    let descriptors = protox::compile(FILES, ["."])?;
    let descriptor_file = PathBuf::from(env::var("OUT_DIR")?).join("daybook.bin");
    fs::write(descriptor_file, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
