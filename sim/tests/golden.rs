//! The report is the one that was looked at: a change of policy shows its price.

#[test]
fn the_report_is_as_recorded() {
    let recorded = include_str!("golden/report.txt");
    let now = homerun_sim::report();
    assert!(
        recorded == now,
        "the report has changed; if it is meant to: make sim > sim/tests/golden/report.txt\n\nrecorded:\n{recorded}\nnow:\n{now}"
    );
}
