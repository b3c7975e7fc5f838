//! Generates the stubs from the contract. Needs protoc.

fn main() -> std::io::Result<()> {
    let proto = "../../proto/attnd/v1/attention.proto";
    println!("cargo:rerun-if-changed={proto}");
    tonic_prost_build::configure().build_server(false).compile_protos(&[proto], &["../../proto"])
}
