//! A report as a picture: a bar for each figure, with its range and what is promised.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use crate::report::{Figure, Promise, Report};

const WIDTH: u32 = 900;
const ROW: u32 = 26;
const MARGIN: u32 = 110;

/// Draws the medians as bars, the ranges as lines over them, and a mark where the promise is. An axis has one unit,
/// that of the first figure; those with another are left out.
pub fn bars(report: &Report, path: &Path) -> Result<()> {
    let unit = report.figures.first().context("there are no figures")?.unit;
    let figures: Vec<&Figure> = report.figures.iter().filter(|figure| figure.unit == unit).collect();
    let count = figures.len();
    let bound = |promise: Option<Promise>| match promise {
        Some(Promise::AtMost(bound) | Promise::AtLeast(bound)) => bound,
        None => 0.0,
    };
    let longest = figures.iter().map(|figure| figure.spread().2.max(bound(figure.promise)));
    let longest = longest.fold(0.0, f64::max).max(f64::MIN_POSITIVE) * 1.1;
    let size = (WIDTH, MARGIN + ROW * count as u32);
    let root = SVGBackend::new(path, size).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("{error}");
    root.fill(&WHITE).map_err(failed)?;
    let title = format!("{}, commit {}", report.machine.cpu, report.machine.commit);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 14))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(260)
        .build_cartesian_2d(0.0..longest, (0..count).into_segmented())
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc(unit)
        .y_labels(count)
        .y_label_formatter(&|segment| match segment {
            SegmentValue::CenterOf(row) if *row < count => figures[count - 1 - row].name(),
            _ => String::new(),
        })
        .draw()
        .map_err(failed)?;
    for (row, figure) in figures.iter().rev().enumerate() {
        let (least, median, greatest) = figure.spread();
        let (low, middle, high) =
            (SegmentValue::Exact(row), SegmentValue::CenterOf(row), SegmentValue::Exact(row + 1));
        let mut bar = Rectangle::new([(0.0, low.clone()), (median, high.clone())], BLUE.mix(0.4).filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar]).map_err(failed)?;
        let range =
            PathElement::new(vec![(least, middle.clone()), (greatest, middle)], BLACK.stroke_width(2));
        chart.draw_series([range]).map_err(failed)?;
        if figure.promise.is_some() {
            let at = bound(figure.promise);
            let mark = PathElement::new(vec![(at, low), (at, high)], RED.stroke_width(2));
            chart.draw_series([mark]).map_err(failed)?;
        }
    }
    root.present().map_err(failed)
}
