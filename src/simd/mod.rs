//! Instruction sets: a kernel body is written once and compiled for each of them.
//!
//! A [`Kernel`] is an ordinary `#[inline(always)]` body over fixed-width [`Lanes`]. [`run`] inlines it into
//! a function that may use one instruction set's registers, chosen once per call. Every set performs the
//! same operations in the same order, on sixteen lanes everywhere, so all of them give the same bits.

mod element;
pub(crate) mod lanes;
pub(crate) mod log;
mod real;

pub use element::Element;
pub use lanes::{LANES, Lanes};
pub use real::Real;

/// A computation that [`run`] compiles for every instruction set.
pub trait Kernel {
    /// What the computation returns.
    type Output;

    /// The body; mark it `#[inline(always)]`, or it is compiled for the baseline only.
    fn run(self) -> Self::Output;
}

/// An instruction set that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// What every processor of the target has: SSE2 on x86-64, without FMA, which makes it slow.
    Portable,
    /// 256-bit registers, with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit registers.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 128-bit registers of 64-bit Arm.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The instruction sets of this machine, the widest last.
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

    /// The widest instruction set of this machine.
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

/// Asks for the memory of an element to be brought near, to the second-level cache, while something is computed.
#[inline(always)]
pub(crate) fn prefetch<T>(element: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, of a valid address, that every x86-64 has.
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
/// If the machine lacks `isa`.
#[inline]
pub fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    assert!(isa.is_available(), "this machine has no {isa:?}");
    match isa {
        Isa::Portable => portable(kernel),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine has the features, as just checked.
        Isa::Avx2 => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine has the features, as just checked.
        Isa::Avx512 => unsafe { avx512(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the machine has the features, as just checked.
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
