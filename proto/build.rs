//! Compiles the `.proto` files in pure Rust: no `protoc` on the user's machine.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["proto/mobula.proto", "proto/admin.proto"], ["proto"])?;
    // For gRPC reflection.
    let set = std::path::Path::new(&std::env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(set, prost::Message::encode_to_vec(&files))?;
    tonic_prost_build::configure()
        .bytes(".")
        // Absent from nearly all tasks: one word in each.
        .boxed(".mobula.v1.TaskSpec.options")
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds(files)?;
    Ok(())
}
