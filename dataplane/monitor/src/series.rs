//! A metric's series at one moment: labels and values that were counted elsewhere.

use std::{collections::BTreeMap, fmt};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::MetricType,
};

/// How many bytes of a label's value are shown at most.
pub const LABEL_LIMIT: usize = 128;

type Labels = Vec<(&'static str, String)>;

/// The series of one metric, to be registered under its name.
///
/// A [`Registry`](crate::Registry) appends `_total` to a counter's name and the unit to every name that has one. Series are written
/// in the order of their labels, each set of labels once. A metric without any series is left out.
#[derive(Debug, Clone)]
pub struct Series {
    kind: MetricType,
    rows: BTreeMap<Labels, Value>,
}

#[derive(Debug, Clone)]
enum Value {
    Whole(u64),
    Real(f64),
    Histogram { sum: f64, buckets: Vec<(f64, u64)> },
}

impl Series {
    /// Series that only grow while the daemon runs.
    #[must_use]
    pub const fn counter() -> Self {
        Self { kind: MetricType::Counter, rows: BTreeMap::new() }
    }

    /// Series that go up and down.
    #[must_use]
    pub const fn gauge() -> Self {
        Self { kind: MetricType::Gauge, rows: BTreeMap::new() }
    }

    /// Series of how many observations fell below each of some bounds.
    #[must_use]
    pub const fn histogram() -> Self {
        Self { kind: MetricType::Histogram, rows: BTreeMap::new() }
    }

    /// Quantiles of what there is at the moment, each under a label `quantile`: a summary without sum and count.
    #[must_use]
    pub const fn quantiles() -> Self {
        // The library has no summaries; the text is corrected afterwards, and nothing else has this kind.
        Self { kind: MetricType::Unknown, rows: BTreeMap::new() }
    }

    /// Series whose labels are all they have to say; their value is 1, and the name gets `_info`.
    #[must_use]
    pub const fn info() -> Self {
        Self { kind: MetricType::Info, rows: BTreeMap::new() }
    }

    /// With `value` under `labels`, added to what is there: two workers' numbers are one daemon's.
    #[must_use]
    pub fn count<const N: usize>(mut self, labels: [(&'static str, &str); N], value: u64) -> Self {
        self.add(labels, value);
        self
    }

    /// Adds `value` to what is there under `labels`.
    pub fn add<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: u64) {
        let row = self.rows.entry(shown(labels)).or_insert(Value::Whole(0));
        *row = match row {
            Value::Whole(before) => Value::Whole(before.saturating_add(value)),
            Value::Real(_) | Value::Histogram { .. } => Value::Whole(value),
        };
    }

    /// With `value` under `labels`, instead of what is there.
    #[must_use]
    pub fn with<const N: usize>(mut self, labels: [(&'static str, &str); N], value: f64) -> Self {
        self.set(labels, value);
        self
    }

    /// Sets what is shown under `labels`.
    pub fn set<const N: usize>(&mut self, labels: [(&'static str, &str); N], value: f64) {
        self.rows.insert(shown(labels), Value::Real(value));
    }

    /// With a histogram: the sum of what was observed, and for each bound how many observations it holds that the bound before
    /// does not. What is above the last bound is in a bucket without one, `f64::INFINITY`.
    #[must_use]
    pub fn observed<const N: usize>(
        mut self,
        labels: [(&'static str, &str); N],
        sum: f64,
        buckets: Vec<(f64, u64)>,
    ) -> Self {
        self.rows.insert(shown(labels), Value::Histogram { sum, buckets });
        self
    }
}

/// Labels as they are shown: what names a person or a peer gave may be long or hold anything, and a line holds only so much.
fn shown<const N: usize>(labels: [(&'static str, &str); N]) -> Labels {
    let value = |value: &str| {
        let printable = value.chars().map(|letter| if letter.is_control() { '_' } else { letter });
        let mut value = String::with_capacity(value.len().min(LABEL_LIMIT));
        for letter in printable {
            if value.len().saturating_add(letter.len_utf8()) > LABEL_LIMIT {
                break;
            }
            value.push(letter);
        }
        value
    };
    labels.into_iter().map(|(name, of)| (name, value(of))).collect()
}

impl EncodeMetric for Series {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, value) in &self.rows {
            // What has no labels gets no braces either; those of an info are not a family's.
            if labels.is_empty() || matches!(self.kind, MetricType::Info) {
                self.write(&mut encoder, labels, value)?;
            } else {
                self.write(&mut encoder.encode_family(labels)?, labels, value)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }

    fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl Series {
    fn write(&self, encoder: &mut MetricEncoder<'_>, labels: &Labels, value: &Value) -> fmt::Result {
        match (self.kind, value) {
            (MetricType::Info, _) => encoder.encode_info(labels),
            (_, Value::Histogram { sum, buckets }) => {
                let count = buckets.iter().fold(0, |count: u64, (_, more)| count.saturating_add(*more));
                encoder.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)
            }
            (MetricType::Counter, Value::Whole(value)) => {
                encoder.encode_counter::<NoLabelSet, _, u64>(value, None)
            }
            (MetricType::Counter, Value::Real(value)) => {
                encoder.encode_counter::<NoLabelSet, _, f64>(value, None)
            }
            (_, Value::Whole(value)) => encoder.encode_gauge(value),
            (_, Value::Real(value)) => encoder.encode_gauge(value),
        }
    }
}
