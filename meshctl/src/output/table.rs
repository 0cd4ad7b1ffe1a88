//! Plain ASCII tables, and how sizes and times are written in them.

use comfy_table::{ContentArrangement, Table, presets};

use super::printable;

/// What stands in a cell for "nothing to tell".
pub(crate) const NONE: &str = "-";

/// A table without lines: columns two spaces apart, headed in capitals; its width is its content's.
pub(crate) struct Columns(Table);

impl Columns {
    /// A table with these column heads.
    pub(crate) fn new<const N: usize>(heads: [&str; N]) -> Self {
        let mut table = Self::bare();
        table.0.set_header(heads);
        table
    }

    /// A table without heads, for name and value.
    pub(crate) fn bare() -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        Self(table)
    }

    /// Adds a row; empty cells become `-`, and no cell can break out of its line.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|cell| match cell.as_str() {
            "" => NONE.to_owned(),
            cell => printable(cell).replace('\n', " "),
        }));
    }

    /// The lines, each ending in a newline and none in blanks.
    pub(crate) fn text(mut self) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in self.0.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number of bytes as people read it: `512 B`, `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Tenths of the unit, rounded; halves of a tenth do not matter to people.
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS.get(unit).unwrap_or(&"EiB"))
}

/// A span of milliseconds in its largest unit, rounded: `3 s`, `5 min`, `2 h`, `4 d`.
pub(crate) fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let (unit, name) = match seconds {
        0..60 => (1, "s"),
        60..3600 => (60, "min"),
        3600..172_800 => (3600, "h"),
        _ => (86_400, "d"),
    };
    format!("{} {name}", seconds.saturating_add(unit / 2) / unit)
}

/// A moment seen from `now`, both milliseconds since 1970: `3 d ago`, `in 2 h`; empty for 0, which means "never".
pub(crate) fn moment(at: u64, now: u64) -> String {
    match at {
        0 => String::new(),
        at if at > now => format!("in {}", span(at - now)),
        at => format!("{} ago", span(now - at)),
    }
}

/// A moment, milliseconds since 1970, by itself: `2026-11-20 16:31:05Z`.
pub(crate) fn utc(at: u64) -> String {
    let seconds = at / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // From 1 March of year 0 on, in eras of 400 years (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// A round trip, to three digits or so: `0.420 ms`, `1.25 ms`, `32.1 ms`.
pub(crate) fn round_trip(us: u32) -> String {
    let (whole, rest) = (us / 1000, us % 1000);
    match whole {
        0 => format!("0.{rest:03} ms"),
        1..10 => format!("{whole}.{:02} ms", rest / 10),
        _ => format!("{whole}.{} ms", rest / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_one_decimal() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1023.9 KiB"),
            (1_048_576, "1.0 MiB"),
            (38_759_812, "36.9 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn times_are_told_from_now() {
        const NOW: u64 = 1_700_000_000_000;
        for (at, text) in [
            (0, ""),
            (NOW, "0 s ago"),
            (NOW - 59_999, "59 s ago"),
            (NOW - 60_000, "1 min ago"),
            (NOW - 3_600_000, "1 h ago"),
            (NOW - 172_800_000, "2 d ago"),
            (NOW + 86_400_000, "in 24 h"),
            (NOW + 86_399_990, "in 24 h"),
            (NOW + 5_300_000, "in 1 h"),
            (NOW + 5_500_000, "in 2 h"),
        ] {
            assert_eq!(moment(at, NOW), text);
        }
    }

    #[test]
    fn moments_are_told_in_universal_time() {
        for (at, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_399_999, "2000-02-28 23:59:59Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (951_868_800_000, "2000-03-01 00:00:00Z"),
            (1_704_067_199_000, "2023-12-31 23:59:59Z"),
            (1_709_164_800_000, "2024-02-29 00:00:00Z"),
            (1_795_278_665_250, "2026-11-21 16:31:05Z"),
            (4_107_542_400_000, "2100-03-01 00:00:00Z"),
        ] {
            assert_eq!(utc(at), text);
        }
        // Any number can be told.
        assert!(utc(u64::MAX).ends_with('Z'));
    }

    #[test]
    fn round_trips_are_in_milliseconds() {
        assert_eq!(round_trip(7), "0.007 ms");
        assert_eq!(round_trip(420), "0.420 ms");
        assert_eq!(round_trip(9_999), "9.99 ms");
        assert_eq!(round_trip(32_150), "32.1 ms");
    }

    #[test]
    fn a_cell_cannot_break_out_of_its_line() {
        let mut table = Columns::new(["NAME", "PATH"]);
        table.row(["a\nb\u{1b}[2J".to_owned(), String::new()]);
        assert_eq!(table.text(), "NAME     PATH\na b?[2J  -\n");
    }
}
