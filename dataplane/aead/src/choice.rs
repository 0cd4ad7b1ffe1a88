//! Which kernel seals and opens, and why.

use std::fmt::{self, Display};
use std::str::FromStr;

use thiserror::Error;

use crate::avx512;
use crate::key::Key;
use crate::self_test::{self, Wrong};

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The quickest kernel that this CPU has and that passes its test, else the library.
    #[default]
    Auto,
    /// The library, whatever the CPU has.
    Portable,
}

impl Choice {
    /// The word used in configuration and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Portable => "portable",
        }
    }
}

impl Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is none of `auto` and `portable`.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no way to encrypt packets: choose auto or portable")]
pub struct UnknownChoice(String);

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(word: &str) -> Result<Self, UnknownChoice> {
        match word {
            "auto" => Ok(Self::Auto),
            "portable" => Ok(Self::Portable),
            _ => Err(UnknownChoice(word.to_owned())),
        }
    }
}

/// What seals and opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The library (aws-lc), one packet after the other.
    Portable,
    /// Our own, sixteen packets side by side; needs AVX-512 F, BW, VL and IFMA.
    Avx512,
}

impl Kernel {
    /// The word shown by `meshctl status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx512 => "avx512",
        }
    }
}

impl Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The kernel in use, and a sentence that says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The kernel.
    pub kernel: Kernel,
    /// Why, for people: "this CPU has no AVX-512 (F, BW, VL, IFMA); using the library".
    pub reason: String,
}

/// Says which kernel `choice` leads to on this machine. Ask once, at start: the test of a kernel takes about a millisecond.
#[must_use]
pub fn choose(choice: Choice) -> Chosen {
    choose_from(choice, avx512::is_here(), self_test::check::<Key>)
}

/// Chooses by what the CPU has and by what `test` says of it.
fn choose_from(choice: Choice, has_avx512: bool, test: impl FnOnce(Kernel) -> Result<(), Wrong>) -> Chosen {
    let portable = |reason| Chosen { kernel: Kernel::Portable, reason };
    if choice == Choice::Portable {
        return portable("portable was chosen in the configuration".to_owned());
    }
    if !has_avx512 {
        return portable("this CPU has no AVX-512 with IFMA (F, BW, VL, IFMA); using the library".to_owned());
    }
    match test(Kernel::Avx512) {
        Ok(()) => {
            let reason = "this CPU has AVX-512 with IFMA, and the kernel agrees with the library".to_owned();
            Chosen { kernel: Kernel::Avx512, reason }
        }
        Err(wrong) => portable(format!("the AVX-512 kernel {wrong}; using the library (please report this)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [Choice::Auto, Choice::Portable] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "avx512".parse::<Choice>().unwrap_err();
        assert_eq!(error.to_string(), r#""avx512" is no way to encrypt packets: choose auto or portable"#);
    }

    #[test]
    fn who_asks_for_the_library_gets_it() {
        let chosen = choose(Choice::Portable);
        assert_eq!(chosen.kernel, Kernel::Portable);
        assert_eq!(chosen.reason, "portable was chosen in the configuration");
    }

    #[test]
    fn the_kernel_is_used_where_the_cpu_has_it_and_it_passes_its_test() {
        let chosen = choose_from(Choice::Auto, true, |_| Ok(()));
        assert_eq!(chosen.kernel, Kernel::Avx512);
        let chosen = choose_from(Choice::Auto, false, |_| panic!("there is nothing to be tested"));
        assert_eq!(chosen.kernel, Kernel::Portable);
        assert!(chosen.reason.contains("no AVX-512"), "{}", chosen.reason);
    }

    #[test]
    fn a_kernel_that_fails_its_test_is_not_used() {
        let chosen = choose_from(Choice::Auto, true, |_| Err(Wrong::Sealed { run: 16, len: 1420 }));
        assert_eq!(chosen.kernel, Kernel::Portable);
        let reason = "the AVX-512 kernel seals 16 packets of 1420 bytes otherwise than the library; using the library (please report this)";
        assert_eq!(chosen.reason, reason);
    }

    #[test]
    fn the_kernel_of_this_cpu_passes_its_test() {
        let chosen = choose(Choice::Auto);
        let expected = if avx512::is_here() { Kernel::Avx512 } else { Kernel::Portable };
        assert_eq!(chosen.kernel, expected, "{}", chosen.reason);
    }
}
