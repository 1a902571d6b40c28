//! Medians, percentiles and ranges.

/// The middle of `values`, or the mean of the two in the middle. `NaN` without values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The smallest and the largest, `NaN` without values.
pub(crate) fn range(values: &[f64]) -> (f64, f64) {
    let sorted = sorted(values);
    match (sorted.first(), sorted.last()) {
        (Some(least), Some(most)) => (*least, *most),
        _ => (f64::NAN, f64::NAN),
    }
}

/// The value that this share of `sorted` does not exceed (nearest rank).
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// The same for values that were truncated to whole numbers. Equal values count as spread evenly up to the next number, as
/// in the median of grouped data.
pub(crate) fn percentile_of_truncated(sorted: &[f64], share: f64) -> f64 {
    let whole = percentile(sorted, share);
    let below = sorted.partition_point(|value| *value < whole);
    let equal = sorted.partition_point(|value| *value <= whole) - below;
    whole + (sorted.len() as f64 * share - below as f64) / equal as f64
}

pub(crate) fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_percentile_of_truncated_values_lies_between_two_whole_numbers() {
        let mostly_sevens = [6.0, 7.0, 7.0, 7.0, 7.0, 8.0, 9.0, 9.0];
        assert_eq!(percentile_of_truncated(&mostly_sevens, 0.5), 7.75);
        assert_eq!(percentile_of_truncated(&[7.0; 10], 0.5), 7.5);
        assert_eq!(percentile_of_truncated(&[7.0], 1.0), 8.0);
        assert!(percentile_of_truncated(&[], 0.5).is_nan());
    }

    #[test]
    fn a_range_spans_all_values() {
        assert_eq!(range(&[2.0, 5.0, 1.0]), (1.0, 5.0));
    }
}
