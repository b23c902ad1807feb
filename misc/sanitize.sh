#!/bin/sh
# Runs the native code under what finds wrong memory accesses and undefined behavior: make sanitize.
#
#     misc/sanitize.sh 60  # seconds of fuzzing
#
# AddressSanitizer needs a nightly Rust and gcc's libasan; Miri a nightly with that component; valgrind itself.
# Miri is slow and interprets the portable kernels, valgrind knows no AVX-512.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
case $seconds in *[!0-9]*) echo "sanitize: expected seconds, but got $seconds" >&2; exit 2 ;; esac
out=$PWD/target/sanitize
ran=

miss() { echo "sanitize: $1 is missing: $2" >&2; }

cargo +nightly --version > /dev/null 2>&1 ||
    { miss "a nightly Rust" "rustup toolchain install nightly"; exit 1; }

target=$(rustc -vV | sed -n 's/^host: //p')
asan=$(gcc -print-file-name=libasan.so)
if [ -f "$asan" ]; then
    echo "== AddressSanitizer: the extension under its tests, and fuzzed for $seconds s"
    RUSTFLAGS="-Zsanitizer=address -Cforce-frame-pointers=yes" CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_TARGET_DIR=$out \
        cargo +nightly build --quiet --release --lib --target "$target"
    rm -rf "$out/python"
    mkdir -p "$out/python"
    cp -r python/lr_relax "$out/python"
    cp "$out/$target/release/liblr_relax.so" "$out/python/lr_relax/_native.abi3.so"
    # Python itself is not instrumented, so that the library has to come first; Python leaks by design.
    under_asan() {
        env LD_PRELOAD="$asan $(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
            PYTHONMALLOC=malloc PYTHONPATH="$out/python" python "$@"
    }
    under_asan misc/fuzz --seconds "$seconds"
    under_asan -m pytest -q tests/python/test_losses.py tests/python/test_label_relaxation.py \
        tests/python/test_credal_targets.py tests/python/test_mixtures.py tests/python/test_binary.py \
        tests/python/test_hostile.py tests/python/test_threads.py tests/python/metrics/test_inputs.py \
        tests/python/metrics/test_calibration_error.py tests/python/metrics/test_scores.py \
        -k "not compile and not tracing and not forked and not loader"
    ran="$ran AddressSanitizer"
else
    miss libasan "install gcc"
fi

if cargo +nightly miri --version > /dev/null 2>&1; then
    echo "== Miri, with tree borrows: rows, threads and a portable kernel, two minutes"
    MIRIFLAGS="-Zmiri-tree-borrows -Zmiri-disable-isolation -Zmiri-ignore-leaks" PROPTEST_CASES=1 \
        cargo +nightly miri test --quiet --no-default-features --lib --target-dir "$out" -- \
        rows:: threads:: binary_label_relaxation nan_and_infinity --skip what_does_not_fit
    ran="$ran Miri"
else
    miss Miri "rustup component add miri --toolchain nightly"
fi

if command -v valgrind > /dev/null; then
    echo "== valgrind: the tests of the kernels"
    binary=$(PROPTEST_CASES=1 cargo test --no-default-features --lib --no-run 2>&1 |
        sed -n 's/.*(\(target.*\))$/\1/p' | head -n 1)
    PROPTEST_CASES=1 valgrind --quiet --error-exitcode=1 --leak-check=no "$binary" --test-threads=1 \
        rows:: threads:: kernels::losses kernels::sum_exp --skip what_does_not_fit
    ran="$ran valgrind"
else
    miss valgrind "install it"
fi
echo "sanitize: no errors under$ran"
