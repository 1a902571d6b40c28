//! The context that a caller sends (W3C Trace Context), and which calls are sampled.

/// The ids of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    pub(super) trace: u128,
    pub(super) span: u64,
}

impl SpanContext {
    /// Parses a `traceparent`, and returns whether its sender samples the trace. `None`: it is malformed, and counts as absent.
    #[must_use]
    pub fn parse(header: &[u8]) -> Option<(Self, bool)> {
        const LENGTH: usize = 55;
        let (known, rest) = header.split_at_checked(LENGTH)?;
        let text = std::str::from_utf8(known).ok()?;
        let hex = |from: usize, to: usize| {
            let digits = text.get(from..to)?;
            let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let number = || u128::from_str_radix(digits, 16).ok();
            digits.bytes().all(lower).then(number).flatten()
        };
        let dashes = [2, 35, 52].into_iter().all(|at| known[at] == b'-');
        let ends = match hex(0, 2)? {
            0 => rest.is_empty(),
            0xff => false,
            // A later version may have further fields.
            _ => rest.first().is_none_or(|byte| *byte == b'-'),
        };
        let (trace, span, flags) = (hex(3, 35)?, hex(36, 52)?, hex(53, 55)?);
        let span = u64::try_from(span).ok()?;
        let valid = dashes && ends && trace != 0 && span != 0;
        valid.then_some((Self { trace, span }, flags & 1 == 1))
    }

    #[must_use]
    pub fn trace_hex(self) -> String {
        format!("{:032x}", self.trace)
    }

    #[must_use]
    pub fn span_hex(self) -> String {
        format!("{:016x}", self.span)
    }
}

/// Which calls are sampled (`OTEL_TRACES_SAMPLER`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Whether a caller that sends a context decides.
    pub by_parent: bool,
    /// Of the other calls, the part that is sampled, 0 to 1.
    pub ratio: f64,
}

impl Sampler {
    /// `parent`: whether the caller samples the trace; `None`: it sent no context.
    pub(super) fn samples(self, trace: u128, parent: Option<bool>) -> bool {
        match parent.filter(|_| self.by_parent) {
            Some(sampled) => sampled,
            None => self.samples_root(trace),
        }
    }

    /// As in the SDKs of OpenTelemetry, so that services with the same ratio sample the same traces.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "saturates"
    )]
    fn samples_root(self, trace: u128) -> bool {
        let bound = (self.ratio * (1_u64 << 63) as f64) as u64;
        self.ratio >= 1.0 || ((trace as u64) >> 1) < bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

    #[test]
    fn a_traceparent_is_read_and_a_malformed_one_is_none() {
        let context = SpanContext { trace: TRACE, span: SPAN };
        let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        let parse = |header: String| SpanContext::parse(header.as_bytes());
        assert_eq!(parse(format!("00-{ids}-01")), Some((context, true)));
        assert_eq!(parse(format!("00-{ids}-00")), Some((context, false)));
        assert_eq!(parse(format!("00-{ids}-03")), Some((context, true)));
        assert_eq!(parse(format!("cc-{ids}-01-more")), Some((context, true)));
        for malformed in [
            String::new(),
            format!("00-{ids}"),
            format!("00-{ids}-01-more"),
            format!("cc-{ids}-01more"),
            format!("ff-{ids}-01"),
            format!("00-{}-01", ids.to_uppercase()),
            format!("00-{ids}-+1"),
            format!("00_{ids}-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16)),
            format!("00-{}\u{e9}-01", &ids[..47]),
        ] {
            assert_eq!(parse(malformed.clone()), None, "{malformed}");
        }
        assert_eq!((context.trace_hex() + "-" + &context.span_hex()), ids);
    }

    #[test]
    fn the_parent_decides_and_without_one_the_ratio() {
        let sampler = |by_parent, ratio| Sampler { by_parent, ratio };
        for (sampler, parent, sampled) in [
            (sampler(true, 1.0), None, true),
            (sampler(true, 1.0), Some(false), false),
            (sampler(true, 0.0), Some(true), true),
            (sampler(true, 0.0), None, false),
            (sampler(false, 1.0), Some(false), true),
            (sampler(false, 0.0), Some(true), false),
        ] {
            assert_eq!(sampler.samples(TRACE, parent), sampled, "{sampler:?} {parent:?}");
        }
        let mut random = fastrand::Rng::with_seed(7);
        let sampled =
            (0..100_000).filter(|_| sampler(true, 0.01).samples(random.u128(..), None)).count();
        assert!((800..1_200).contains(&sampled), "{sampled} of 100,000 at 1 %");
    }
}
