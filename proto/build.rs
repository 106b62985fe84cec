//! Compiles the contract with protox, so that nobody needs `protoc`.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where the contract is, beside this file.
const ROOT: &str = "daybook";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={ROOT}");
    let mut files = Vec::new();
    collect(Path::new(ROOT), &mut files)?;
    files.sort();
    let descriptors = protox::compile(files, ["."])?;
    let descriptor_file = PathBuf::from(env::var("OUT_DIR")?).join("daybook.bin");
    fs::write(descriptor_file, prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
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
