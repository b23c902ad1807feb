//! With the feature `tch`, compiles the C++ file of src/tch against the torch that torch-sys found.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "tch")]
    tch();
}

#[cfg(feature = "tch")]
fn tch() {
    use std::path::{Path, PathBuf};

    const SOURCE: &str = "src/tch/torch.cpp";
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    // torch-sys sets this variable, except in builds of the documentation.
    let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else { return };
    let include = lib.parent().unwrap_or(Path::new("/")).join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false) // there are many in torch's headers
        .opt_level(2)
        .debug(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file(SOURCE)
        .compile("lr_relax_torch");

    // `cargo test` and `cargo run` add a link search path to the library path of the process only if it is in the
    // target folder. Create a symbolic link there, so that tests and examples find torch's libraries.
    #[cfg(unix)]
    {
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
        let link = out.join("libtorch");
        let _ = std::fs::remove_file(&link);
        match std::os::unix::fs::symlink(&lib, &link) {
            Ok(()) => println!("cargo:rustc-link-search=native={}", link.display()),
            Err(error) => {
                println!(
                    "cargo:warning=could not create the link {} to torch's libraries: {error}",
                    link.display()
                )
            }
        }
    }
}
