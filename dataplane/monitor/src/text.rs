//! The two text formats of Prometheus. What `prometheus-client` writes is OpenMetrics 1.0; who does not ask for that gets the older
//! text format 0.0.4, in which a counter's name has its `_total` everywhere, and there is neither unit nor end.

/// In what form series are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Plain,
}

impl Form {
    /// The form that `accept`, an `Accept` header's value, likes best; the plain one unless it names the other.
    pub(crate) fn of(accept: &str) -> Self {
        let (mut open, mut plain) = (0.0_f32, 0.0_f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let mut weight = 1.0_f32;
            let mut known = true;
            for parameter in parts {
                match parameter.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
                    Some(("q", value)) => weight = value.parse().unwrap_or(0.0),
                    Some(("version", value)) => known &= matches!(value, "1.0.0" | "0.0.1" | "0.0.4"),
                    _ => {}
                }
            }
            let weight = if known { weight } else { 0.0 };
            if kind.eq_ignore_ascii_case("application/openmetrics-text") {
                open = open.max(weight);
            } else if ["text/plain", "text/*", "*/*"].iter().any(|any| kind.eq_ignore_ascii_case(any)) {
                plain = plain.max(weight);
            }
        }
        if open > 0.0 && open >= plain { Self::OpenMetrics } else { Self::Plain }
    }

    /// The `Content-Type` of the answer.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// `text`, which is OpenMetrics, in this form.
    pub(crate) fn write(self, text: &str) -> String {
        match self {
            Self::OpenMetrics => written(text, false),
            Self::Plain => written(text, true),
        }
    }
}

fn written(text: &str, plain: bool) -> String {
    let mut written = String::with_capacity(text.len());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if plain && (line.starts_with("# UNIT ") || line == "# EOF") {
            continue;
        }
        // A metric's help and its type follow each other, and only the type says how the name goes on.
        let described =
            line.strip_prefix("# HELP ").zip(lines.peek().and_then(|next| next.strip_prefix("# TYPE ")));
        if let Some((help, kind)) = described {
            let (name, help) = help.split_once(' ').unwrap_or((help, ""));
            let (_, kind) = kind.split_once(' ').unwrap_or((kind, "unknown"));
            let (suffix, kind) = match kind {
                // What `Series::quantiles` is for the library.
                "unknown" => ("", "summary"),
                "counter" if plain => ("_total", kind),
                "info" if plain => ("_info", "gauge"),
                other => ("", other),
            };
            lines.next();
            written.extend(["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"]);
        } else {
            written.extend([line, "\n"]);
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_one_that_is_liked_best() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Form::of(prometheus), Form::OpenMetrics);
        for plain in ["", "*/*", "text/html,*/*;q=0.8", "text/plain", "application/json", ",;,=;q=;;"] {
            assert_eq!(Form::of(plain), Form::Plain, "{plain}");
        }
        assert_eq!(Form::of("application/openmetrics-text;q=0.1,text/plain"), Form::Plain);
        assert_eq!(Form::of("Application/OpenMetrics-Text ; Q=1"), Form::OpenMetrics);
        assert_eq!(Form::of("application/openmetrics-text;q=0"), Form::Plain);
        assert_eq!(Form::of("application/openmetrics-text;version=9.0.0"), Form::Plain);
    }

    #[test]
    fn the_plain_form_names_a_counter_with_its_suffix() {
        let open = "# HELP a_bytes Bytes.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{p=\"# EOF\"} 1\n\
                    # HELP b It.\n# TYPE b info\nb_info{v=\"1\"} 1\n# HELP c C.\n# TYPE c gauge\nc 2\n# EOF\n";
        let plain = "# HELP a_bytes_total Bytes.\n# TYPE a_bytes_total counter\na_bytes_total{p=\"# EOF\"} 1\n\
                     # HELP b_info It.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP c C.\n# TYPE c gauge\nc 2\n";
        assert_eq!(Form::Plain.write(open), plain);
        assert_eq!(Form::OpenMetrics.write(open), open);
        let quantiles = "# HELP q Q.\n# TYPE q unknown\nq{quantile=\"1\"} 2\n";
        for form in [Form::Plain, Form::OpenMetrics] {
            assert_eq!(form.write(quantiles), quantiles.replace("unknown", "summary"));
        }
    }
}
