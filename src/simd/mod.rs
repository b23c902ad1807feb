//! Compiles each kernel for several instruction sets, and selects one of them at run time.
//!
//! The body of a [`Kernel`] is a plain `#[inline(always)]` function over fixed-width [`Lanes`]. [`run`] inlines it
//! into a function that is compiled for one instruction set. All instruction sets perform the same operations in
//! the same order, so they give the same bits.

mod element;
pub(crate) mod lanes;
pub(crate) mod log;
mod real;

pub use element::Element;
pub use lanes::{LANES, Lanes};
pub use real::Real;

/// A computation that [`run`] compiles for every instruction set.
pub trait Kernel {
    /// The type of the result.
    type Output;

    /// Runs the computation. Mark it `#[inline(always)]`; otherwise it is compiled for the baseline only.
    fn run(self) -> Self::Output;
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// The baseline of the target: SSE2 on x86-64, which is slow because it has no FMA.
    Portable,
    /// AVX2 with FMA: 256-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 (F, BW, DQ and VL): 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON on 64-bit Arm: 128-bit registers.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The instruction sets that this machine supports, the widest last.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut sets = vec![Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx2() {
                sets.push(Isa::Avx2);
            }
            if has_avx512() {
                sets.push(Isa::Avx512);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            sets.push(Isa::Neon);
        }
        sets
    }

    /// The widest instruction set that this machine supports.
    #[inline]
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx512() {
                return Isa::Avx512;
            }
            if has_avx2() {
                return Isa::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Isa::Neon;
        }
        Isa::Portable
    }

    fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => has_avx512(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Prefetches the cache line of an element into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch<T>(element: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has this instruction, and the address is valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(element).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = element;
}

/// Runs `kernel`, compiled for `isa`.
///
/// # Panics
///
/// If this machine does not support `isa`.
#[inline]
pub fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    assert!(isa.is_available(), "this machine does not support {isa:?}");
    match isa {
        Isa::Portable => portable(kernel),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine supports the features, as checked above.
        Isa::Avx2 => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine supports the features, as checked above.
        Isa::Avx512 => unsafe { avx512(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the machine supports the features, as checked above.
        Isa::Neon => unsafe { neon(kernel) },
    }
}

#[inline(never)]
fn portable<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}
